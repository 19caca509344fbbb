//! The template by which chat programs write a conversation as text.

use serde_json::{Value, json};

use super::{Companions, Content};
use crate::{MergeFault, Result};

/// The file of the template beside newer tokenizers.
const FILE: &str = "chat_template.jinja";

/// The file of the template beside older tokenizers.
const SETTINGS: &str = "tokenizer_config.json";

/// Templates that a recipe may name, as mergekit does.
const NAMED: [(&str, &str); 5] = [
    (
        "chatml",
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + \
         '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ),
    (
        "llama3",
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + \
         '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if \
         add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ),
    (
        "mistral",
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + \
         message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + \
         eos_token }}{% else %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}",
    ),
    (
        "alpaca",
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '### Instruction:\\n' + \
         message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + \
         message['content'] + eos_token + '\\n\\n' }}{% else %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor \
         %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
    ),
    (
        "exaone",
        "{% for message in messages %}{{ '[|' + message['role'] + '|]' + message['content'] }}{% if message['role'] == \
         'user' %}{{ '\\n' }}{% else %}{{ '[|endofturn|]\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt \
         %}{{ '[|assistant|]' }}{% endif %}",
    ),
];

/// Shorter texts, and texts without a brace, are misspelled names.
const MIN_TEMPLATE_BYTES: usize = 20;

/// The template that a recipe asks for: `auto` for the one that most models have, a name, or the template
/// itself. `None` if no model has one.
pub(crate) fn wanted(asked: &str, models: &[Companions]) -> Result<Option<String>> {
    if asked == "auto" {
        return most_common(models);
    }
    if let Some((_, template)) = NAMED.iter().find(|(name, _)| *name == asked) {
        return Ok(Some((*template).to_owned()));
    }
    if asked.len() < MIN_TEMPLATE_BYTES || !asked.contains('{') {
        let names = NAMED.map(|(name, _)| name);
        return Err(MergeFault::ChatTemplate {
            asked: asked.to_owned(),
            known: names.join(", "),
        }
        .into());
    }
    Ok(Some(asked.to_owned()))
}

/// The template that most models have, of several the one that comes first.
fn most_common(models: &[Companions]) -> Result<Option<String>> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for companions in models {
        let Some(template) = of(companions)? else {
            continue;
        };
        let template = template.trim().to_owned();
        match counts.iter_mut().find(|(known, _)| *known == template) {
            Some((_, count)) => *count += 1,
            None => counts.push((template, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max();
    let found = counts.into_iter().find(|(_, count)| Some(*count) == most);
    Ok(found.map(|(template, _)| template))
}

/// The template of a model.
pub(crate) fn of(companions: &Companions) -> Result<Option<String>> {
    if let Some((_, text)) = companions.text(FILE)? {
        return Ok(Some(text));
    }
    let Some(settings) = companions.settings(SETTINGS)? else {
        return Ok(None);
    };
    Ok(match settings.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        // Several, by name.
        Some(Value::Array(named)) => named.iter().find_map(|named| {
            let is_default = named.get("name").and_then(Value::as_str) == Some("default");
            let template = named.get("template").and_then(Value::as_str)?;
            is_default.then(|| template.to_owned())
        }),
        _ => None,
    })
}

/// Puts a template where loaders look for it. Returns the file that was changed.
pub(crate) fn set(companions: &mut Companions, template: &str) -> Result<&'static str> {
    let has_file = companions.0.contains_key(FILE);
    if let Some(mut settings) = companions.settings(SETTINGS)? {
        if let Some(settings) = settings.as_object_mut() {
            if has_file {
                settings.remove("chat_template");
            } else {
                settings.insert("chat_template".to_owned(), json!(template));
            }
        }
        let text = format!("{settings:#}\n");
        companions
            .0
            .insert(SETTINGS.to_owned(), Content::Text(text));
        if !has_file {
            return Ok(SETTINGS);
        }
    }
    companions
        .0
        .insert(FILE.to_owned(), Content::Text(template.to_owned()));
    Ok(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(files: &[(&str, &str)]) -> Companions {
        let files = files.iter();
        Companions(
            files
                .map(|(name, text)| ((*name).to_owned(), Content::Text((*text).to_owned())))
                .collect(),
        )
    }

    #[test]
    fn the_template_of_most_models_is_taken() {
        let models = [
            model(&[(FILE, "{{ first }}")]),
            model(&[(SETTINGS, r#"{"chat_template": "{{ second }}"}"#)]),
            model(&[(
                SETTINGS,
                r#"{"chat_template": [{"name": "default", "template": "{{ second }}\n"}]}"#,
            )]),
            model(&[]),
        ];
        let auto = |models: &[Companions]| wanted("auto", models).expect("readable");
        assert_eq!(auto(&models), Some("{{ second }}".to_owned()));
        assert_eq!(auto(&models[..2]), Some("{{ first }}".to_owned()));
        assert_eq!(auto(&models[3..]), None);
        assert!(
            wanted("chatml", &[])
                .expect("known")
                .is_some_and(|text| text.contains("im_start"))
        );
        let said = wanted("chatlm", &[]).expect_err("misspelled").to_string();
        assert!(said.contains("chatlm") && said.contains("chatml"), "{said}");
    }

    #[test]
    fn a_template_goes_where_the_tokenizer_keeps_it() {
        let mut older = model(&[(SETTINGS, r#"{"a": 1}"#)]);
        assert_eq!(set(&mut older, "{{ new }}").expect("set"), SETTINGS);
        assert_eq!(of(&older).expect("readable"), Some("{{ new }}".to_owned()));
        let mut newer = model(&[(SETTINGS, r#"{"chat_template": "old"}"#), (FILE, "old")]);
        assert_eq!(set(&mut newer, "{{ new }}").expect("set"), FILE);
        assert_eq!(of(&newer).expect("readable"), Some("{{ new }}".to_owned()));
        let (_, text) = newer.text(SETTINGS).expect("readable").expect("there");
        assert!(!text.contains("old"));
    }
}
