//! The tables of docs/configuration.md, made of the settings' types: names, types, defaults and what is said of them.

use std::fs;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use crate::config::{GatewaySettings, NodeSettings, RegistrySettings, Settings};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");

/// Set to write the tables anew instead of comparing them.
const WRITE: &str = "AGENTNET_WRITE_REFERENCE";

/// Returns the table of one kind of settings.
fn table<S: Settings + JsonSchema>() -> String {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<S>();
    let schema = schema.to_value();
    let defaults = serde_json::to_value(S::default()).unwrap();
    let mut table = "| key | type | default | meaning |\n|---|---|---|---|\n".to_owned();
    for key in S::KEYS {
        let mut node = &schema;
        let mut default = &defaults;
        for name in key.split('.') {
            node = &node["properties"][name];
            default = &default[name];
        }
        let meaning = meaning(node);
        assert!(!meaning.is_empty(), "{key} is not explained");
        let live = if S::is_live(key) {
            " Taken up by a reload."
        } else {
            ""
        };
        let row = format!(
            "| `{key}` | {} | {} | {meaning}{live} |\n",
            kind(node),
            shown(default)
        );
        table.push_str(&row);
    }
    table
}

/// Returns the values of an enum, each with what is said of it.
fn values(node: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut add = |value: &Value, of: &Value| {
        let text = of["description"].as_str().unwrap_or_default();
        found.extend(value.as_str().map(|name| (name.to_owned(), joined(text))));
    };
    for one in node["oneOf"].as_array().into_iter().flatten() {
        add(&one["const"], one);
        let others = one["enum"].as_array().into_iter().flatten();
        others.for_each(|name| add(name, &Value::Null));
    }
    let others = node["enum"].as_array().into_iter().flatten();
    others.for_each(|name| add(name, &Value::Null));
    found
}

fn meaning(node: &Value) -> String {
    let text = joined(node["description"].as_str().unwrap_or_default());
    let values = values(node);
    let of = values.iter().filter(|(_, text)| !text.is_empty());
    let of = of.map(|(name, text)| format!("`{name}`: {}", text.trim_end_matches('.')));
    let of = of.collect::<Vec<_>>().join("; ");
    if of.is_empty() {
        text
    } else {
        format!("{text} {of}.")
    }
}

fn joined(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

fn kind(node: &Value) -> String {
    let values = values(node);
    if !values.is_empty() {
        let names = values.iter().map(|(name, _)| format!("`{name}`"));
        return names.collect::<Vec<_>>().join(", ");
    }
    let kinds = &node["type"];
    let several = kinds.as_array();
    let named = several.map_or(Some(kinds), |several| {
        several.iter().find(|kind| *kind != "null")
    });
    match named.and_then(Value::as_str) {
        Some("array") => format!("list of {}", kind(&node["items"])),
        Some("boolean") => "`true`, `false`".to_owned(),
        Some("integer") => "number".to_owned(),
        _ => "text".to_owned(),
    }
}

fn shown(default: &Value) -> String {
    if default.is_null() {
        "none".to_owned()
    } else {
        format!("`{default}`")
    }
}

/// Puts `table` between the marks of `name`.
fn put(document: &str, name: &str, table: &str) -> String {
    let (begin, end) = (
        format!("<!-- {name}: made of the types -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let (before, rest) = document
        .split_once(&begin)
        .expect("a mark of where it begins");
    let (_, after) = rest.split_once(&end).expect("a mark of where it ends");
    format!("{before}{begin}{table}{end}{after}")
}

/// Issue 6: the reference of the settings is what the program takes.
#[test]
fn the_reference_of_settings_is_true() {
    let found = fs::read_to_string(DOCUMENT).unwrap();

    let mut made = put(&found, "node", &table::<NodeSettings>());
    made = put(&made, "registry", &table::<RegistrySettings>());
    made = put(&made, "gateway", &table::<GatewaySettings>());

    if std::env::var_os(WRITE).is_some() {
        fs::write(DOCUMENT, made).unwrap();
    } else {
        assert!(
            made == found,
            "docs/configuration.md is out of date: run this test with {WRITE}=1"
        );
    }
}
