"""How a conversation is written, for transformers: Jinja that gives what caldera's own template renders."""

CHAT_TEMPLATE = (
    "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user\\'s questions. ' }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% set images = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
    "{% set texts = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') %}"
    "{% if images | length == 1 %}{{ ('<image>\\n' ~ (texts | join | trim)) | trim }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endif %}{{ ' ASSISTANT:' }}"
    "{% else %}{{ ' ' }}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
"""vicuna_v1 for transformers' `apply_chat_template`; caldera itself never runs a template from a folder."""
