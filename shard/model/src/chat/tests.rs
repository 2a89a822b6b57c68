//! Templates of the published styles, what they refuse, and their bounds.

use super::*;
use crate::import::TextTokenizer;

/// Turns between markers, with a default system text, as ChatML models have them.
const CHATML: &str = r"{%- if messages[0].role == 'system' %}
    {%- set talk = messages[1:] %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {%- set talk = messages %}
    {{- '<|im_start|>system\nBe brief.<|im_end|>\n' }}
{%- endif %}
{%- for m in talk %}
    {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}";

/// Headers around roles, a date, trimmed contents.
const HEADERS: &str = r"{{- bos_token }}
{%- if not today is defined %}{%- set today = strftime_now('%d %b %Y') %}{%- endif %}
{%- for m in messages %}
    {%- set text = '<|head|>' ~ m['role'] ~ '<|/head|>\n\n' ~ m['content'] | trim ~ '<|eot|>' %}
    {{- text }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\n\n' }}
{%- endif %}";

/// Turns that alternate and know no system role; written for `trim_blocks` and `lstrip_blocks`.
const TURNS: &str = r"{{ bos_token }}
{% if messages[0]['role'] == 'system' %}
    {{ raise_exception('no system role') }}
{% endif %}
{% for m in messages %}
    {% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate') }}
    {% endif %}
    {% if m['role'] == 'assistant' %}
        {% set role = 'model' %}
    {% else %}
        {% set role = m['role'] %}
    {% endif %}
{{ '<turn>' + role + '\n' + m['content'].strip() + '</turn>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<turn>model\n' }}
{% endif %}";

fn write(folder: &Path, config: &serde_json::Value) {
    std::fs::write(folder.join(CONFIG), config.to_string()).unwrap();
}

fn template(text: &str) -> ChatTemplate {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &serde_json::json!({ "chat_template": text, "bos_token": { "content": "<s>", "lstrip": false } }));
    ChatTemplate::read(folder.path()).unwrap().expect("a template")
}

fn talk(list: &[(&str, &str)]) -> Vec<Message> {
    list.iter().map(|(role, content)| Message::new(role, content)).collect()
}

#[test]
fn marked_turns() {
    let chat = template(CHATML);
    let plain = chat.render(&talk(&[("user", "Hi <b>\"you\"</b>")])).unwrap();
    let head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n";
    assert_eq!(plain, format!("{head}Hi <b>\"you\"</b><|im_end|>\n<|im_start|>assistant\n"));
    let with = chat.render(&talk(&[("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")])).unwrap();
    assert_eq!(
        with,
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn headers_trim_and_begin_with_the_special_token() {
    let text = template(HEADERS).render(&talk(&[("user", "  Hi \n")])).unwrap();
    assert_eq!(text, "<s><|head|>user<|/head|>\n\nHi<|eot|><|head|>assistant<|/head|>\n\n");
}

#[test]
fn blocks_leave_no_space_and_exceptions_are_the_publishers() {
    let chat = template(TURNS);
    let text = chat.render(&talk(&[("user", " a "), ("assistant", "b"), ("user", "c")])).unwrap();
    // A line break after an expression stays, one after a block goes.
    let turns = "<s>\n<turn>user\na</turn>\n<turn>model\nb</turn>\n<turn>user\nc</turn>\n<turn>model\n\n";
    assert_eq!(text, turns);
    let refused = chat.render(&talk(&[("system", "s"), ("user", "a")])).unwrap_err();
    assert!(matches!(&refused, ChatError::Refused(text) if text == "no system role"), "{refused}");
    let refused = chat.render(&talk(&[("user", "a"), ("user", "b")])).unwrap_err();
    assert!(matches!(&refused, ChatError::Refused(text) if text == "roles must alternate"), "{refused}");
}

#[test]
fn what_published_templates_use_is_there() {
    let date = template("{{ strftime_now('%Y') }}").render(&[]).unwrap();
    assert!(date.parse::<u32>().unwrap() >= 2024, "{date}");
    let loops = r"{%- set ns = namespace(last=-1) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.last < 0 and m.role == 'user' and not m.content.startswith('<tool') %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- for m in messages %}{% if loop.index0 > ns.last %}{% break %}{% endif %}{{- loop.index0 ~ m.content.split('x')[-1] }}{% endfor %}";
    assert_eq!(template(loops).render(&talk(&[("user", "axb"), ("user", "c"), ("assistant", "d")])).unwrap(), "0b1c");
    let macros = "{% macro turn(m) %}[{{ m.role | upper }}{{ m.get('name', '?') }}]{% endmacro %}{{ turn(messages[0]) }}";
    assert_eq!(template(macros).render(&talk(&[("user", "a")])).unwrap(), "[USER?]");
    // Undefined values are false and empty, `none` is tested for.
    let undefined = "{{ tools }}{% if tools is defined and tools is not none %}t{% endif %}{% if not documents %}d{% endif %}";
    assert_eq!(template(undefined).render(&[]).unwrap(), "d");
    let json = "{{ messages | tojson }}{{ messages[0].content | tojson(indent=4) }}{{ {'a': [1]} | tojson(indent=2) }}";
    let text = template(json).render(&talk(&[("user", "<é'\">")])).unwrap();
    assert_eq!(text, r#"[{"role": "user", "content": "<é'\">"}]"<é'\">""#.to_owned() + "{\n  \"a\": [\n    1\n  ]\n}");
}

#[test]
fn templates_are_found_where_publishers_put_them() {
    let folder = tempfile::tempdir().unwrap();
    let read = || ChatTemplate::read(folder.path());
    let text = || read().unwrap().expect("a template").render(&[]).unwrap();
    assert!(read().unwrap().is_none(), "an empty folder");
    write(folder.path(), &serde_json::json!({ "bos_token": "<s>" }));
    assert!(read().unwrap().is_none(), "a tokenizer without a template");
    let list =
        serde_json::json!([{ "name": "tool_use", "template": "t" }, { "name": "default", "template": "d{{ bos_token }}" }]);
    write(folder.path(), &serde_json::json!({ "bos_token": "<s>", "eos_token": null, "chat_template": list }));
    assert_eq!(text(), "d<s>");
    std::fs::write(folder.path().join(TEMPLATE), "own{{ bos_token }}{{ eos_token }}").unwrap();
    assert_eq!(text(), "own<s>");
    std::fs::remove_file(folder.path().join(TEMPLATE)).unwrap();
    for (config, cause) in [
        (serde_json::json!({ "chat_template": [{ "name": "tool_use", "template": "t" }] }), "named `default`"),
        (serde_json::json!({ "chat_template": 3 }), "not a template"),
        (serde_json::json!({ "chat_template": "x", "bos_token": 1 }), "bos_token"),
        (serde_json::json!({ "chat_template": "{% if %}" }), "syntax error"),
    ] {
        write(folder.path(), &config);
        let error = read().unwrap_err().to_string();
        assert!(error.contains(cause), "{error}");
    }
    std::fs::write(folder.path().join(CONFIG), "{").unwrap();
    assert!(matches!(read(), Err(ChatError::Config { .. })));
}

#[test]
fn nothing_runs_or_grows_without_end() {
    let long = "x".repeat(MAX_TEMPLATE_BYTES + 1);
    assert!(matches!(ChatTemplate::new(long, BTreeMap::new()), Err(ChatError::Bound { what: "bytes of template", .. })));
    let run = |text: &str| template(text).render(&talk(&[("user", "a")])).unwrap_err();
    let steps = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = b %}{% endfor %}{% endfor %}";
    assert!(matches!(run(steps), ChatError::Bound { what: "steps", .. }));
    let text = format!("{{% for a in range(9999) %}}{}{{% endfor %}}", "x".repeat(999));
    assert!(matches!(run(&text), ChatError::Bound { what: "bytes of text", .. }));
    let deep = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(matches!(run(deep), ChatError::Template(_)));
    for outside in ["{% include '/etc/hostname' %}", "{{ open('x') }}", "{{ messages.__class__.mro() }}"] {
        assert!(matches!(run(outside), ChatError::Template(_)), "{outside}");
    }
}

/// Words, with a beginning token that the tokenizer adds by itself unless told otherwise.
fn tokenizer() -> TextTokenizer {
    let special = |id: u32, text: &str| {
        serde_json::json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true,
        })
    };
    let begin = serde_json::json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(0, "<s>"), special(1, "<|end|>")],
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [begin, { "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } },
        },
        "model": {
            "type": "WordLevel", "unk_token": "?",
            "vocab": { "<s>": 0, "<|end|>": 1, "?": 2, "hello": 3, "world": 4, "user": 5 },
        },
    });
    TextTokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
}

#[test]
fn a_rendered_chat_begins_once() {
    let tokenizer = tokenizer();
    let chat = template("{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }}<|end|>{% endfor %}");
    let text = chat.render(&talk(&[("user", "hello world")])).unwrap();
    let ids = tokenizer.encode_plain(&text).unwrap();
    assert_eq!(ids, [0, 5, 3, 4, 1]);
    // What the model's own special tokens would add.
    assert_eq!(tokenizer.encode(&text).unwrap(), [0, 0, 5, 3, 4, 1]);
    assert_eq!(tokenizer.encode("hello world").unwrap(), [0, 3, 4]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "<s> user hello world <|end|>");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "user hello world");
}
