"""Prompts: texts and pictures, read from files and turned into the token ids that a model sees.

images          `Prompt`: a text, or an `ImagePrompt` with pictures before its text
prompt_files    prompts from files and data sets; `columns` picks the columns of a row that make its
                prompt, `message_lists` the prompt in a list of messages
chat            `render_chat` and `encode_chats`: the chat template and the tokens of a prompt; every
                module that reads activations gets its token ids here
encoding        what chat needs of a tokenizer or a processor (`Reader`), and the inputs of pictures
template_ends   how given token ids end: as the template ends a prompt, in a begun answer, or as raw text
begun_answers   prompts with begun answers, made to fit and test the gate that reads them
contrast        the labelled prompts that ship with the package (`contrast/*.jsonl`)
similarity      near-duplicates among prompts
shared_prefixes groups of prompts that begin with the same tokens
picture_styles  requests moved into pictures, drawn by `typography`
"""
