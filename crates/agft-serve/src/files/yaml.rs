//! YAML text as a tree that keeps what a message needs: lines, repeated keys, and scalars as they are
//! written.
//!
//! A scalar's type is decided by the key that it belongs to. So `CUDA_VISIBLE_DEVICES: 0` or `VERSION: 1.10`
//! in an `env` are the texts `0` and `1.10`, and `LLAMA_FLAG: on` is `on`, whatever YAML calls them.

use std::collections::BTreeMap;
use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::Value as Json;

use crate::text::shown;

/// Most values of one file, aliases counted where they are used: a few lines of them can multiply into
/// billions.
pub(super) const MAX_VALUES: usize = 1 << 16;
/// Deepest nesting.
pub(super) const MAX_DEPTH: usize = 32;

/// A value, and the line that it begins at, from 1 (0 where it comes from no text).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// `plain`: without quotes, so it may be more than text.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    /// As written: a key may be there more than once.
    Map(Vec<(String, Node)>),
}

/// Why a text is not one YAML document of reasonable size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct YamlError {
    /// From 1.
    pub(super) line: usize,
    pub(super) message: String,
}

impl Node {
    /// Nothing stands there: empty, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|(_, node)| 1 + node.size()).sum(),
        }
    }

    fn depth(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Self::depth).max().unwrap_or(0),
            Value::Map(entries) => entries.iter().map(|(_, node)| node.depth()).max().unwrap_or(0),
        }
    }

    /// The tree of a JSON value.
    pub(super) fn from_json(json: &Json) -> Self {
        let value = match json {
            Json::Null => Value::Scalar { text: String::new(), plain: true },
            Json::Bool(value) => Value::Scalar { text: value.to_string(), plain: true },
            Json::Number(number) => Value::Scalar { text: number.to_string(), plain: true },
            Json::String(text) => Value::Scalar { text: text.clone(), plain: false },
            Json::Array(items) => Value::List(items.iter().map(Self::from_json).collect()),
            Json::Object(entries) => {
                Value::Map(entries.iter().map(|(key, value)| (key.clone(), Self::from_json(value))).collect())
            }
        };
        Self { line: 0, value }
    }

    /// The value as JSON: scalars without quotes have the type that YAML gives them, where JSON has it.
    pub(super) fn to_json(&self) -> Json {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => Json::Null,
            Value::Scalar { text, plain: true } => match text.as_str() {
                "true" | "True" | "TRUE" => Json::Bool(true),
                "false" | "False" | "FALSE" => Json::Bool(false),
                text => {
                    serde_json::from_str(text).map_or_else(|_| Json::String(text.to_owned()), Json::Number)
                }
            },
            Value::Scalar { text, .. } => Json::String(text.clone()),
            Value::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|(key, node)| (key.clone(), node.to_json())).collect())
            }
        }
    }

    /// The value as YAML that reads the same: JSON, in which a number keeps the form that it was written in.
    pub(super) fn to_yaml(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out
    }

    fn write(&self, out: &mut String, indent: usize) {
        let quoted = |text: &str| Json::String(text.to_owned()).to_string();
        let line = |out: &mut String, first: bool| {
            out.push_str(if first { "\n" } else { ",\n" });
            out.extend(std::iter::repeat_n(' ', 2 * (indent + 1)));
        };
        let close = |out: &mut String, empty: bool, bracket: char| {
            if !empty {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', 2 * indent));
            }
            out.push(bracket);
        };
        match &self.value {
            Value::Scalar { .. } if self.is_null() => out.push_str("null"),
            Value::Scalar { text, plain } => {
                let number = serde_json::from_str::<serde_json::Number>(text).is_ok();
                let word = matches!(
                    text.to_ascii_lowercase().as_str(),
                    "true" | "false" | "yes" | "no" | "on" | "off"
                );
                let bare = *plain && (word || number);
                out.push_str(&if bare { text.clone() } else { quoted(text) });
            }
            Value::List(items) => {
                out.push('[');
                for (k, item) in items.iter().enumerate() {
                    line(out, k == 0);
                    item.write(out, indent + 1);
                }
                close(out, items.is_empty(), ']');
            }
            Value::Map(entries) => {
                out.push('{');
                for (k, (key, node)) in entries.iter().enumerate() {
                    line(out, k == 0);
                    out.push_str(&quoted(key));
                    out.push_str(": ");
                    node.write(out, indent + 1);
                }
                close(out, entries.is_empty(), '}');
            }
        }
    }
}

/// For messages.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            _ if self.is_null() => f.write_str("empty"),
            Value::Scalar { text, plain: true } => write!(f, "{}", shown(text)),
            Value::Scalar { text, .. } => write!(f, "\"{}\"", shown(text)),
            Value::List(items) => write!(f, "a list of {}", items.len()),
            Value::Map(entries) => write!(f, "a mapping of {}", entries.len()),
        }
    }
}

/// Reads the one document of `text`.
///
/// # Errors
/// [`YamlError`] where it is not YAML, has several documents, unknown tags, or more or deeper values than a
/// file of instances can need.
pub(super) fn parse(text: &str) -> Result<Node, YamlError> {
    let mut tree = Tree::default();
    let mut documents = 0;
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) =
            event.map_err(|error| at(error.marker().line(), format!("is not YAML: {}", error.info())))?;
        let line = span.start.line();
        match event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    let message = "begins a second YAML document, must be the only one; take the --- out";
                    return Err(at(line, message.into()));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let mut plain = style == ScalarStyle::Plain;
                if let Some(tag) = tag {
                    plain &= core_type(&tag, line)?.is_none_or(|name| name != "str");
                }
                let value = Value::Scalar { text: text.into_owned(), plain };
                tree.add(Node { line, value }, anchor)?;
            }
            Event::SequenceStart(anchor, tag) => {
                tree.open(Value::List(Vec::new()), anchor, tag.as_deref(), line)?;
            }
            Event::MappingStart(anchor, tag) => {
                tree.open(Value::Map(Vec::new()), anchor, tag.as_deref(), line)?;
            }
            Event::SequenceEnd | Event::MappingEnd => tree.close()?,
            Event::Alias(anchor) => tree.alias(anchor, line)?,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }
    let nothing = Node { line: 1, value: Value::Scalar { text: String::new(), plain: true } };
    Ok(tree.root.unwrap_or(nothing))
}

fn at(line: usize, message: String) -> YamlError {
    YamlError { line: line.max(1), message }
}

/// The name of a type of YAML itself.
fn core_type(tag: &Tag, line: usize) -> Result<Option<&str>, YamlError> {
    match tag.suffix.as_str() {
        name @ ("str" | "int" | "float" | "bool" | "null" | "seq" | "map") if tag.is_yaml_core_schema() => {
            Ok(Some(name))
        }
        // A lone `!` says only: this is no number.
        "" => Ok(Some("str")),
        _ => {
            Err(at(line, format!("has the tag {}, which no key takes; take it out", shown(&tag.to_string()))))
        }
    }
}

/// A list or mapping that is not complete.
struct Open {
    node: Node,
    anchor: usize,
    /// The key whose value comes next.
    key: Option<String>,
}

#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    root: Option<Node>,
    values: usize,
}

impl Tree {
    fn open(&mut self, value: Value, anchor: usize, tag: Option<&Tag>, line: usize) -> Result<(), YamlError> {
        if let Some(tag) = tag {
            core_type(tag, line)?;
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(at(
                line,
                format!("is nested deeper than {MAX_DEPTH} levels, must be a file of instances"),
            ));
        }
        self.open.push(Open { node: Node { line, value }, anchor, key: None });
        Ok(())
    }

    fn close(&mut self) -> Result<(), YamlError> {
        let Some(Open { mut node, anchor, .. }) = self.open.pop() else { return Ok(()) };
        if let Value::Map(entries) = &mut node.value {
            merge(entries)?;
        }
        self.add(node, anchor)
    }

    fn alias(&mut self, anchor: usize, line: usize) -> Result<(), YamlError> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(at(line, "is an alias of what it is part of, must be of something before it".into()));
        };
        if self.open.len() + node.depth() > MAX_DEPTH {
            return Err(at(
                line,
                format!("is nested deeper than {MAX_DEPTH} levels, must be a file of instances"),
            ));
        }
        self.values += node.size();
        self.within_budget(line)?;
        let node = Node { line, ..node.clone() };
        self.add(node, 0)
    }

    fn within_budget(&self, line: usize) -> Result<(), YamlError> {
        if self.values > MAX_VALUES {
            let message = format!(
                "has more than {MAX_VALUES} values, aliases counted where they are used; must be a file of instances"
            );
            return Err(at(line, message));
        }
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), YamlError> {
        self.values += 1;
        self.within_budget(node.line)?;
        if anchor > 0 {
            // What stays beside the tree counts as well.
            self.values += node.size();
            self.within_budget(node.line)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut parent.node.value {
            Value::List(items) => items.push(node),
            Value::Map(entries) => match parent.key.take() {
                Some(key) => entries.push((key, node)),
                None => match node.value {
                    Value::Scalar { text, .. } => parent.key = Some(text),
                    _ => return Err(at(node.line, "has a list or mapping as a key, must be a word".into())),
                },
            },
            Value::Scalar { .. } => {}
        }
        Ok(())
    }
}

/// Puts the entries of `<<` where the mapping has none of its own: what is shared stands once in a file.
fn merge(entries: &mut Vec<(String, Node)>) -> Result<(), YamlError> {
    let merged: Vec<_> = entries.extract_if(.., |(key, _)| key == "<<").collect();
    for (_, node) in merged {
        let line = node.line;
        let maps = match node.value {
            Value::List(items) => items,
            value => vec![Node { line, value }],
        };
        for map in maps {
            let Value::Map(shared) = map.value else {
                return Err(at(line, format!("<< is {map}, must be a mapping or a list of mappings")));
            };
            for (key, node) in shared {
                if !entries.iter().any(|(own, _)| *own == key) {
                    entries.push((key, node));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(text: &str, key: &str) -> Node {
        let Value::Map(entries) = parse(text).unwrap().value else { panic!("{text}") };
        entries.into_iter().find(|(name, _)| name == key).unwrap().1
    }

    #[test]
    fn scalars_stay_as_they_are_written() {
        for (written, read) in [
            ("1.10", "1.10"),
            ("0x10", "0x10"),
            ("010", "010"),
            ("on", "on"),
            ("'on'", "on"),
            ("\"a\\tb\"", "a\tb"),
            ("!!str 8", "8"),
            ("0,1", "0,1"),
        ] {
            let node = entry(&format!("k: {written}"), "k");
            let plain = !written.starts_with(['\'', '"', '!']);
            assert_eq!(node.value, Value::Scalar { text: read.into(), plain }, "{written}");
        }
        for empty in ["", "~", "null"] {
            assert!(entry(&format!("k: {empty}"), "k").is_null());
        }
        assert!(!entry("k: ''", "k").is_null());
        assert!(parse("").unwrap().is_null() && parse("# only a comment\n").unwrap().is_null());
    }

    #[test]
    fn anchors_and_merges_are_followed_and_own_keys_win() {
        let text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\nc: *a\n";
        assert_eq!(entry(text, "b").to_json(), serde_json::json!({"y": 3, "x": 1}));
        assert_eq!(entry(text, "c").to_json(), serde_json::json!({"x": 1, "y": 2}));
        assert_eq!(entry(text, "b").line, 3);
    }

    #[test]
    fn what_is_no_document_of_instances_is_refused() {
        let mut bomb = "- &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let item = format!("*a{}", level - 1);
            bomb += &format!("- &a{level} [{}]\n", [item.as_str(); 9].join(", "));
        }
        for (text, word) in [
            (bomb.as_str(), "more than"),
            (&"[".repeat(1 << 17), "limit"),
            (&"- ".repeat(1 << 17), "deeper"),
            ("a: &a [*a]", "alias of"),
            ("a: 1\n---\nb: 2\n", "second"),
            ("a: !ruby/object x", "tag"),
            ("a: *nothing", "not YAML"),
            ("[a]: 1", "as a key"),
            ("a: [1", "not YAML"),
            ("<<: 7", "must be a mapping"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message.contains(word), "{error:?}");
        }
    }

    fn json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::Bool),
            any::<i64>().prop_map(Json::from),
            any::<String>().prop_map(Json::String),
            "[ -~]{0,12}".prop_map(Json::String),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Json::Array),
                proptest::collection::btree_map("[a-z ]{1,8}", inner, 0..6)
                    .prop_map(|map| Json::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(json in json()) {
            let written = Node::from_json(&json).to_yaml();
            prop_assert_eq!(parse(&written).unwrap().to_json(), json, "{}", written);
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), yaml in "[-\\[\\]{}:,?&*!|>'\"%@`#a0. \t\n]{0,60}") {
            for text in [text, yaml] {
                if let Ok(node) = parse(&text) {
                    let _ = (node.to_json(), node.to_string());
                    prop_assert_eq!(parse(&node.to_yaml()).map(|node| node.to_json()), Ok(node.to_json()));
                }
            }
        }
    }
}
