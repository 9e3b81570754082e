"""Chat templates in the styles of well-known model families, each with what makes its family hard."""

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

GEMMA = """\
{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('No system role here') }}{% endif %}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles have to alternate') }}{% endif -%}
{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' ~ m.content | trim ~ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif -%}
"""
"""No system turn; contents are trimmed."""

LLAMA_2 = """\
{%- if messages[0].role == 'system' -%}
{%- set rest = messages[1:] -%}{%- set first = '<<SYS>>\n' ~ messages[0].content ~ '\n<</SYS>>\n\n' -%}
{%- else -%}{%- set rest = messages -%}{%- set first = '' -%}{%- endif -%}
{%- for m in rest -%}
{%- set said = first ~ m.content if loop.first else m.content -%}
{%- if m.role == 'user' -%}{{ bos_token ~ '[INST] ' ~ said.strip() ~ ' [/INST]' }}
{%- else -%}{{ ' ' ~ said.strip() ~ ' ' ~ eos_token }}{%- endif -%}
{%- endfor -%}
"""
"""A BOS a turn; the system turn stands in the first user turn."""

LLAMA_3 = """\
{{- bos_token -}}
{%- if not date_string is defined -%}
{%- if strftime_now is defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}
{%- else -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}
{%- endif -%}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content.strip() -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' ~ 'Today is ' ~ date_string ~ '.\n\n' ~ system ~ '<|eot_id|>' -}}
{%- for m in messages -%}
{{- '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ m.content | trim ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}
"""
"""Prints the day."""

LLAMA_3_1 = LLAMA_3.replace(
    "{%- if strftime_now is defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}\n"
    "{%- else -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}",
    "{%- set date_string = '26 Jul 2024' -%}",
)
"""Reads `date_string`, and has a day of its own where nobody says one."""

QWEN_3 = """\
{%- if tools -%}
{{- '<|im_start|>system\n' -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content ~ '\n\n' -}}{%- endif -%}
{{- 'These tools can be called:\n<tools>' -}}
{%- for tool in tools -%}{{- '\n' -}}{{- tool | tojson -}}{%- endfor -%}
{{- '\n</tools><|im_end|>\n' -}}
{%- elif messages[0].role == 'system' -%}
{{- '<|im_start|>system\n' ~ messages[0].content ~ '<|im_end|>\n' -}}
{%- endif -%}
{%- set ns = namespace(asked=messages | length - 1, open=true) -%}
{%- for m in messages[::-1] -%}
{%- set index = messages | length - 1 - loop.index0 -%}
{%- if ns.open and m.role == 'user' and not (m.content.startswith('<tool_response>') and
    m.content.endswith('</tool_response>')) -%}
{%- set ns.open = false -%}{%- set ns.asked = index -%}
{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' -}}
{%- elif m.role == 'assistant' -%}
{%- set content = m.content -%}{%- set thoughts = '' -%}
{%- if m.reasoning_content is string -%}{%- set thoughts = m.reasoning_content -%}
{%- elif '</think>' in content -%}
{%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\n' -}}
{%- if loop.index0 > ns.asked and (loop.last or thoughts) -%}
{{- '<think>\n' ~ thoughts.strip('\n') ~ '\n</think>\n\n' ~ content.lstrip('\n') -}}
{%- else -%}{{- content -}}{%- endif -%}
{%- for call in m.tool_calls or [] -%}
{%- set call = call.function or call -%}
{%- if content or not loop.first -%}{{- '\n' -}}{%- endif -%}
{{- '<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' -}}
{%- if call.arguments is string -%}{{- call.arguments -}}{%- else -%}{{- call.arguments | tojson -}}{%- endif -%}
{{- '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- elif m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\n<tool_response>\n' ~ m.content ~ '\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}
"""
"""Prints the reasoning behind the last question only; tools and their answers."""

DEEPSEEK_R1 = """\
{{- bos_token -}}
{%- for m in messages if m.role == 'system' -%}{{- m.content -}}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<|User|>' ~ m.content -}}
{%- elif m.role == 'assistant' -%}
{%- set content = m.content.split('</think>')[-1] if '</think>' in m.content else m.content -%}
{{- '<|Assistant|>' ~ content ~ eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|Assistant|><think>\n' -}}{%- endif -%}
"""
"""Drops all reasoning; nothing ends a user's turn."""

TOOLS = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}{{- '[TOOL_RESULTS] ' ~ {'content': m.content, 'call': m.tool_call_id} | tojson -}}
{%- elif m.tool_calls -%}
{{- '[TOOL_CALLS] [' -}}
{%- for call in m.tool_calls -%}{{- call.function | tojson -}}{{- ', ' if not loop.last else '' -}}{%- endfor -%}
{{- ']' ~ eos_token -}}
{%- elif m.role == 'assistant' -%}{{- ' ' ~ m.content ~ eos_token -}}
{%- else -%}{{- '[' ~ m.role ~ '] ' ~ m.content -}}{%- endif -%}
{%- endfor -%}
"""
"""Prints tools' answers and calls as JSON."""

SPLITTING = "{% for m in messages %}{{ m.role }}: {{ m.content.split('\n') | join(' / ') }}\n{% endfor %}"
"""Changes line ends within a content."""

SHOUTING = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}"
CUTTING = "{% for m in messages %}{{ m.role }}: {{ m.content[:10] }}\n{% endfor %}"
SILENT = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SWITCHED = (
    "{% for m in messages %}{{ m.role }}: {% if '/no_think' in m.content %}(quick) {% endif %}"
    "{{ m.content }}<|im_end|>{% endfor %}"
)
"""Looks for a word in what is said."""
