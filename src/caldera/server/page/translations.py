"""Texts of the page in English and Chinese."""

from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "zh"]

TEXTS: Mapping[str, tuple[str, str]] = {
    "title": ("Ask about images", "看图问答"),
    "welcome": (
        "Show the assistant an image and ask about it.",
        "给助手看一张图片，然后提问。",
    ),
    "privacy": (
        "Images and texts are sent from this browser to the server only, which does not store them on disk. "
        "Conversations are stored in this browser.",
        "图片和文字只从本浏览器发送到服务器，不会写入其磁盘。对话保存在本浏览器中。",
    ),
    "examples": ("Try one of these", "试试这些例子"),
    # Headings for screen readers before each question and answer.
    "asked": ("You asked", "你的提问"),
    "answered": ("{model} answered", "{model} 的回答"),
    "no_image": ("no image", "没有图片"),
    "ask": ("Ask about the image …", "请输入问题 …"),
    "hint": (
        "Drop or paste images here; Enter sends, Shift+Enter starts a new line.",
        "可拖入或粘贴图片；回车发送，Shift+回车换行。",
    ),
    "add": ("Add images", "添加图片"),
    "photo": ("Take a photo", "拍照"),
    "send": ("Ask", "提问"),
    "stop": ("Stop", "停止"),
    "retry": ("Try again", "重试"),
    "edit": ("Edit question", "修改问题"),
    "editing": (
        "Editing the last question. It stays until you ask; Esc restores it.",
        "正在修改上一个问题；提问之前原问题会保留，按 Esc 恢复。",
    ),
    "cancel": ("Cancel", "取消"),
    "copy": ("Copy", "复制"),
    "copied": ("Copied", "已复制"),
    "close": ("Close", "关闭"),
    "conversation": ("Conversation", "对话"),
    "history": ("History", "历史对话"),
    "history_note": (
        "Earlier conversations are stored in this browser only, for 30 days after the last change.",
        "历史对话只保存在本浏览器中，最后一次修改后保留 30 天。",
    ),
    "history_empty": (
        "There are no earlier conversations. They are stored in this browser only.",
        "还没有历史对话。对话只保存在本浏览器中。",
    ),
    "questions": ("questions: {count}", "{count} 个问题"),
    "open": ("open now", "当前对话"),
    "delete": ("Delete", "删除"),
    "delete_all": ("Delete all", "全部删除"),
    "delete_all_question": (
        "Delete the {count} conversations of this list from this browser?",
        "从本浏览器中删除列表里的 {count} 个对话？",
    ),
    "new": ("New conversation", "新对话"),
    "download": ("Download", "下载"),
    "download_hint": (
        "The conversation in LLaVA's JSON, with its images",
        "以 LLaVA 的 JSON 格式保存对话和图片",
    ),
    "language": ("中文", "English"),
    "added": ("Images in the question: {count}", "问题中的图片：{count}"),
    "remove": ("Remove image", "移除图片"),
    "drop": ("Drop images here", "把图片拖到这里"),
    # The label before each of several images, as in the training data.
    "image": ("Picture", "图片"),
    "waiting": ("waiting …", "正在看图 …"),
    "stopped": ("stopped", "已停止"),
    "length": ("truncated: the longest answer is reached", "已达到回答长度上限"),
    "interrupted": ("interrupted", "已中断"),
    "attention": ("Show attention", "它看了哪里？"),
    "attention_hide": ("Hide", "收起"),
    "attention_loading": ("computing …", "计算中 …"),
    "attention_map": ("Attention on image {index} at: {words}", "对图片 {index} 的注意力：{words}"),
    "attention_all": ("complete answer", "整个回答"),
    "attention_note": (
        "Bright areas have the most attention of the language model, averaged over layers and heads, at the selected "
        "words; {fraction} of all attention is on images. Attention shows which parts of the input the model read. "
        "It does not explain the answer.",
        "亮处是语言模型写出所选词语时注意力所在（对所有层和头取平均）；全部注意力中有 {fraction} 在图片上。"
        "注意力只表明模型从哪里读取信息，并不解释它为何这样回答。",
    ),
    "settings": ("Settings", "设置"),
    "temperature": ("Temperature", "温度"),
    "temperature_info": ("0 always selects the most likely word", "0 表示总是选最可能的词"),
    "top_p": ("Top-p", "Top-p"),
    "top_p_info": (
        "Sample from the most likely words with this total probability",
        "只从累计概率达到此值的词中选取",
    ),
    "max_tokens": ("Longest answer", "最长回答"),
    "max_tokens_info": ("In tokens, about ¾ of a word each", "以词元计，每个约 ¾ 个英文单词"),
    "down": (
        "The server does not respond. Your conversation is stored; continue when the server is back.",
        "服务器没有响应。对话已保留，恢复后可继续。",
    ),
    "back": ("The server is back.", "服务器已恢复。"),
    "lost": ("the server was lost during this answer", "回答时服务器断开了"),
    "no_store": (
        "This browser does not allow the page to store the conversation; it is lost when the page is closed.",
        "此浏览器不允许页面保存对话；关闭页面后对话会丢失。",
    ),
    "not_image": ("{name} is not an image", "{name} 不是图片"),
    "image_bytes": (
        "{name} has {size}; the limit is {limit}",
        "{name} 大小为 {size}；图片不能超过 {limit}",
    ),
    "error": ("Not answered: {text}", "未能回答：{text}"),
    "rejected": ("Rejected: {text}", "未接受：{text}"),
}
"""English and Chinese by name."""

ERRORS: Mapping[str, str] = {
    "busy": "等待的请求已满，请稍后再试",
    "loading": "模型仍在加载，请稍候",
    "shutting_down": "服务器正在关闭",
    "timeout": "回答时间太长，请要求简短一些",
    "out_of_memory": "内存不足，请稍后再试",
    "internal_error": "服务器处理此请求时出错",
    "context_length_exceeded": "对话太长，模型容纳不下；请开始新对话",
    "too_many_images": "图片太多；请开始新对话",
    "empty_question": "问题是空的",
    "nothing_answered": "还没有任何回答",
    "image_file_too_large": "图片文件太大，请缩小",
    "image_too_large": "图片像素太多，请缩小",
    "image_too_small": "图片没有像素",
    "image_parse_error": "图片无法解码；文件已损坏或不完整",
    "unsupported_image_media_type": "只接受 JPEG、PNG、WebP 和 GIF 图片",
    "invalid_image_format": "这不是图片",
    "invalid_base64_image": "图片数据无效",
    "empty_image_file": "图片文件是空的",
    "image_decoder_unavailable": "暂时无法解码图片，请重试",
    "rate_limit_exceeded": "请求太频繁，请稍后再试",
}
"""Chinese error messages by code; in English the page shows the server's message."""


def translate(name: str, language: Language) -> str:
    """Return a text in a language."""
    return TEXTS[name][0 if language == "en" else 1]
