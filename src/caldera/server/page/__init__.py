"""Web page: Gradio interface, guard, payloads, translations."""
