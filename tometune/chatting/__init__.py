"""Talking to a model: engines that answer word by word, conversations, the web page and the terminal."""
