//! What a key accepts: a rule in words, and the function that reads a value by it.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::choices::{Choice, EngineKind, Listen, gpu_uuid};
use super::yaml::{Node, shown};
use crate::gpu::GpuSelector;
use crate::units::{Mhz, Seconds};

/// A value, or no value with, where there is one, a remedy to add to the message.
type Read<T> = Result<T, Option<String>>;

/// Reads a value by a rule.
type Reading<T> = Box<dyn Fn(&Node) -> Read<T>>;

/// What a key accepts.
pub(super) struct Rule<T> {
    pub(super) must_be: String,
    read: Reading<T>,
}

impl<T: 'static> Rule<T> {
    fn new(must_be: impl Into<String>, read: impl Fn(&Node) -> Read<T> + 'static) -> Self {
        Self { must_be: must_be.into(), read: Box::new(read) }
    }

    /// The value of `node`.
    pub(super) fn read(&self, node: &Node) -> Read<T> {
        (self.read)(node)
    }

    /// The same rule for another type.
    fn map<U: 'static>(self, into: impl Fn(T) -> U + 'static) -> Rule<U> {
        Rule::new(self.must_be, move |node| (self.read)(node).map(&into))
    }

    /// Names the unit in the message.
    fn in_unit(mut self, unit: &str) -> Self {
        self.must_be = format!("{} ({unit})", self.must_be);
        self
    }
}

/// `true` or `false`; YAML 1.1's `yes` and `on` are text.
pub(super) fn flag() -> Rule<bool> {
    Rule::new("true or false", |node| match node {
        Node::Bool(value) => Ok(*value),
        Node::Text(text) => Err(match text.to_ascii_lowercase().as_str() {
            "yes" | "on" | "true" => Some("write true".into()),
            "no" | "off" | "false" => Some("write false".into()),
            _ => None,
        }),
        _ => Err(None),
    })
}

/// A whole number in `range`.
pub(super) fn whole<T>(range: RangeInclusive<T>) -> Rule<T>
where
    T: TryFrom<i128> + PartialOrd + Display + 'static,
{
    Rule::new(format!("a whole number from {} to {}", range.start(), range.end()), move |node| {
        let accepted = |value: i128| T::try_from(value).ok().filter(|value| range.contains(value));
        if let Node::Int(value) = node {
            return accepted(*value).ok_or(None);
        }
        // 8.0 and "8" are refused, but what they stand for is plain.
        let meant = match node {
            Node::Float(value) => value.to_string(),
            Node::Text(text) => text.trim().to_owned(),
            _ => return Err(None),
        };
        Err(meant.parse().ok().and_then(accepted).map(|value| format!("write {value}")))
    })
}

/// A finite number in `range`, whole or not.
pub(super) fn real(range: RangeInclusive<f64>) -> Rule<f64> {
    Rule::new(format!("a number from {} to {}", range.start(), range.end()), move |node| {
        let accepted = |value: &f64| range.contains(value);
        match node {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a number too large for an exact f64 is far out of range"
            )]
            Node::Int(value) => Some(*value as f64).filter(accepted).ok_or(None),
            Node::Float(value) => Some(*value).filter(accepted).ok_or(None),
            Node::Text(text) => {
                let meant = text.trim().parse().ok().filter(accepted);
                Err(meant.map(|value| format!("write {value}")))
            }
            _ => Err(None),
        }
    })
}

/// A time in seconds.
pub(super) fn seconds(range: RangeInclusive<f64>) -> Rule<Seconds> {
    real(range).map(Seconds).in_unit("seconds")
}

/// A time in whole milliseconds.
pub(super) fn millis(range: RangeInclusive<u64>) -> Rule<u64> {
    whole(range).in_unit("milliseconds")
}

/// A file size in whole megabytes.
pub(super) fn megabytes(range: RangeInclusive<u64>) -> Rule<u64> {
    whole(range).in_unit("MB")
}

/// A clock, or a difference of clocks.
pub(super) fn mhz(range: RangeInclusive<u32>) -> Rule<Mhz> {
    whole(range).map(Mhz).in_unit("MHz")
}

/// One of a choice's names, in upper or lower case.
pub(super) fn one_of<T: Choice>() -> Rule<T> {
    let names: Vec<&str> = T::NAMES.iter().map(|(name, _)| *name).collect();
    Rule::new(format!("one of {}", names.join(", ")), |node| {
        let Node::Text(text) = node else { return Err(None) };
        let found = T::NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let near = nearest(text, T::NAMES.iter().map(|(name, _)| *name));
            near.map(|name| format!("did you mean {name}?"))
        })
    })
}

/// A list of at least one of a choice's names, none twice.
pub(super) fn some_of<T: Choice + PartialEq>() -> Rule<Vec<T>> {
    let names: Vec<&str> = T::NAMES.iter().map(|(name, _)| *name).collect();
    let item = one_of::<T>();
    Rule::new(format!("a list of at least one of {}", names.join(", ")), move |node| {
        let Node::List(nodes) = node else {
            return Err(item.read(node).ok().map(|_| format!("write [{}]", bare(node))));
        };
        let read = |node| item.read(node).map_err(|remedy| remedy.or(Some(wrong_item(node))));
        let values = nodes.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if repeated(&values).is_some() {
            return Err(Some("name each once".into()));
        }
        if values.is_empty() { Err(None) } else { Ok(values) }
    })
}

fn bare(node: &Node) -> String {
    if let Node::Text(text) = node { text.clone() } else { node.to_string() }
}

/// A list of at most `longest` different values, each as `item` has it.
fn distinct<T: PartialEq + Display + 'static>(what: &str, item: Rule<T>, longest: usize) -> Rule<Vec<T>> {
    Rule::new(format!("a list of at most {longest} different {what}, each {}", item.must_be), move |node| {
        let Node::List(nodes) = node else {
            return Err(item.read(node).ok().map(|value| format!("write [{value}]")));
        };
        let read = |node| item.read(node).map_err(|_| Some(wrong_item(node)));
        let values = nodes.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if let Some(twice) = repeated(&values) {
            return Err(Some(format!("the list has {twice} twice")));
        }
        if values.len() > longest { Err(None) } else { Ok(values) }
    })
}

/// A list of at most `longest` different TCP ports.
pub(super) fn ports(longest: usize) -> Rule<Vec<u16>> {
    distinct("ports", whole(1..=u16::MAX), longest)
}

/// A program by its absolute path and its arguments, at most `longest` texts; empty for none. No shell reads them.
pub(super) fn argv(longest: usize) -> Rule<Vec<String>> {
    Rule::new(format!("a list of at most {longest} texts, the first an absolute path"), move |node| {
        let Node::List(nodes) = node else { return Err(None) };
        let word = |node: &Node| match node {
            Node::Text(text) if !text.contains('\0') => Ok(text.clone()),
            Node::Int(_) | Node::Float(_) | Node::Bool(_) => {
                Err(Some(format!("write \"{node}\", in quotes")))
            }
            node => Err(Some(wrong_item(node))),
        };
        let words = nodes.iter().map(word).collect::<Result<Vec<_>, _>>()?;
        let absolute = words.first().is_none_or(|program| program.starts_with('/'));
        if words.len() > longest || !absolute { Err(None) } else { Ok(words) }
    })
}

/// Text of one line, not empty.
pub(super) fn text() -> Rule<String> {
    Rule::new("text, not empty, on one line", |node| match node {
        Node::Text(text) if !text.trim().is_empty() && !text.contains(char::is_control) => Ok(text.clone()),
        Node::Int(_) | Node::Float(_) | Node::Bool(_) => Err(Some(format!("write \"{node}\", in quotes"))),
        _ => Err(None),
    })
}

/// A path to a file or directory, which need not exist yet.
pub(super) fn path() -> Rule<String> {
    Rule { must_be: "a path, on one line".into(), ..text() }
}

/// What `rule` accepts, or null.
pub(super) fn optional<T: 'static>(rule: Rule<T>) -> Rule<Option<T>> {
    Rule::new(format!("{} or null", rule.must_be), move |node| match node {
        Node::Null => Ok(None),
        node => rule.read(node).map(Some),
    })
}

/// A list of at most `longest` different memory clocks, empty for those the driver names.
pub(super) fn memory_clocks(longest: usize, range: RangeInclusive<u32>) -> Rule<Vec<Mhz>> {
    let item: Rule<u32> = whole(range).in_unit("MHz");
    distinct("values", item, longest).map(|clocks| clocks.into_iter().map(Mhz).collect())
}

/// GPUs, or `auto`, which is an empty list.
pub(super) fn gpus_or_auto() -> Rule<Vec<GpuSelector>> {
    let these = gpus();
    let must_be = these.must_be.replacen("a GPU index", "auto, a GPU index", 1);
    Rule::new(must_be, move |node| match node {
        Node::Text(text) if text.eq_ignore_ascii_case("auto") => Ok(Vec::new()),
        node => these.read(node),
    })
}

/// `auto`, or the name of an engine; whether there is one is seen once all profiles are known.
pub(super) fn engine() -> Rule<EngineKind> {
    Rule::new("auto, or the name of an engine", |node| match node {
        Node::Text(text) if text.eq_ignore_ascii_case("auto") => Ok(EngineKind::Auto),
        Node::Text(text) if !text.trim().is_empty() => Ok(EngineKind::Named(text.clone())),
        _ => Err(None),
    })
}

/// The name of a server, which is the name of a directory and a label, too.
pub(super) fn server_name() -> Rule<String> {
    Rule::new(
        "1 to 64 letters, digits, dots, dashes and underscores, the first a letter or a digit",
        |node| {
            let fits = |text: &str| {
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
                text.len() <= 64
                    && text.starts_with(|c: char| c.is_ascii_alphanumeric())
                    && text.chars().all(plain)
            };
            match node {
                Node::Text(text) if fits(text) => Ok(text.clone()),
                Node::Int(number) => Err(Some(format!("write \"{number}\""))),
                _ => Err(None),
            }
        },
    )
}

/// One GPU or a list of them, each by index or UUID.
pub(super) fn gpus() -> Rule<Vec<GpuSelector>> {
    Rule::new(
        "a GPU index from 0 to 255, a GPU UUID (\"GPU-...\"), or a list of different ones, not empty",
        |node| match node {
            Node::List(nodes) if nodes.is_empty() => Err(None),
            Node::List(nodes) => {
                let read = |node| gpu(node).map_err(|remedy| remedy.or(Some(wrong_item(node))));
                let gpus = nodes.iter().map(read).collect::<Result<Vec<_>, _>>()?;
                if let Some(twice) = repeated(&gpus) {
                    return Err(Some(format!("the list has {twice} twice")));
                }
                Ok(gpus)
            }
            node => gpu(node).map(|gpu| vec![gpu]),
        },
    )
}

fn gpu(node: &Node) -> Read<GpuSelector> {
    match node {
        Node::Text(text) if text.starts_with("MIG-") => {
            Err(Some("a MIG slice has no clocks of its own: name the GPU that holds it".into()))
        }
        Node::Text(text) if text.starts_with("GPU-") => gpu_uuid(text).ok_or_else(|| {
            Some("a UUID is GPU- and letters, digits and dashes; `nvidia-smi -L` prints it".into())
        }),
        node => whole(0..=255).read(node).map(GpuSelector::Index),
    }
}

fn wrong_item(node: &Node) -> String {
    format!("the list has {node}")
}

fn repeated<T: PartialEq>(items: &[T]) -> Option<&T> {
    items.iter().enumerate().find(|(at, item)| items[..*at].contains(item)).map(|(_, item)| item)
}

pub(super) fn page_url() -> Rule<String> {
    Rule::new("an http:// or https:// URL with a host", |node| {
        let Node::Text(text) = node else { return Err(None) };
        let lower = text.to_ascii_lowercase();
        if !lower.starts_with("http://") && !lower.starts_with("https://") {
            let meant = (!text.contains("://") && !text.contains('@')).then(|| format!("http://{text}"));
            let meant = meant.filter(|meant| url::Url::parse(meant).is_ok());
            return Err(meant.map(|meant| format!("write {}", shown(&meant))));
        }
        // The URL standard drops tabs and line breaks silently; here they are mistakes.
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Some("take out the blanks".into()));
        }
        let page = url::Url::parse(text).map_err(|error| Some(error.to_string()))?;
        if !page.username().is_empty() || page.password().is_some() {
            let remedy =
                "take the user name and password out; name a file with a token in vllm.bearer_token_file";
            return Err(Some(remedy.into()));
        }
        if page.port() == Some(0) {
            return Err(Some("port 0 cannot be connected to".into()));
        }
        Ok(text.clone())
    })
}

/// Where a page is served: a numeric address with a port, or `off`.
pub(super) fn listen() -> Rule<Listen> {
    Rule::new("an address with a port (\"127.0.0.1:9477\") or off", |node| match node {
        Node::Text(text) => text.parse().map_err(|_| {
            let port = text.rsplit_once(':').map_or(text.as_str(), |(_, port)| port);
            let local = text.starts_with("localhost:") || !text.contains(':');
            let port: Option<u16> = port.parse().ok().filter(|_| local);
            port.map(|port| format!("write \"127.0.0.1:{port}\""))
        }),
        Node::Null | Node::Bool(false) => Err(Some("write off".into())),
        Node::Int(port) => {
            let port = u16::try_from(*port).ok();
            Err(port.map(|port| format!("write \"127.0.0.1:{port}\"")))
        }
        _ => Err(None),
    })
}

/// A list of at most `longest` host names, without ports.
pub(super) fn host_names(longest: usize) -> Rule<Vec<String>> {
    Rule::new(format!("a list of at most {longest} host names, without ports"), move |node| {
        let Node::List(nodes) = node else { return Err(None) };
        let name = |node: &Node| match node {
            Node::Text(text)
                if !text.is_empty()
                    && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) =>
            {
                Ok(text.clone())
            }
            node => Err(Some(wrong_item(node))),
        };
        let names = nodes.iter().map(name).collect::<Result<Vec<_>, _>>()?;
        if names.len() > longest { Err(None) } else { Ok(names) }
    })
}

/// The name most like `wanted`, if one is at all like it.
pub(super) fn nearest<'n>(wanted: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let wanted = wanted.to_ascii_lowercase();
    names
        .map(|name| (likeness(&wanted, &name.to_ascii_lowercase()), name))
        .filter(|(likeness, _)| *likeness >= LIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Least [`likeness`] of two names that makes one a plausible slip for the other.
pub(super) const LIKE: f64 = 0.5;

/// 1 for equal names, 0 for names with nothing in common, or too long to be worth the comparison.
pub(super) fn likeness(a: &str, b: &str) -> f64 {
    if a.len().max(b.len()) > 100 { 0.0 } else { strsim::normalized_damerau_levenshtein(a, b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::choices::{LogLevel, PolicyKind};
    use crate::config::yaml;

    fn read<T: 'static>(rule: &Rule<T>, text: &str) -> Read<T> {
        rule.read(&yaml::parse(text).unwrap())
    }

    fn remedy<T: std::fmt::Debug + 'static>(rule: &Rule<T>, text: &str) -> String {
        read(rule, text).unwrap_err().unwrap_or_default()
    }

    #[test]
    fn numbers_are_accepted_up_to_both_ends_of_their_range() {
        let rule = whole(3_u32..=8);
        assert_eq!((read(&rule, "3"), read(&rule, "0x8")), (Ok(3), Ok(8)));
        for outside in ["2", "9", "-3", "18446744073709551619", "340282366920938463463374607431768211455"] {
            assert_eq!(read(&rule, outside), Err(None), "{outside}");
        }
        let rule = real(0.5..=2.0);
        assert_eq!((read(&rule, "0.5"), read(&rule, "2"), read(&rule, "1e0")), (Ok(0.5), Ok(2.0), Ok(1.0)));
        for outside in ["0.49", "2.01", ".nan", ".inf", "-.inf", "1e999", "true", "null", "[1]", "!x 1"] {
            assert_eq!(read(&rule, outside), Err(None), "{outside}");
        }
        assert_eq!(read(&whole(0..=u64::MAX), "18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn number_of_the_wrong_type_is_refused_with_what_to_write() {
        let rule = whole(3_u32..=8);
        for text in ["\"8\"", "8.0", "\" 8 \"", "'008'", "8e0"] {
            assert_eq!(remedy(&rule, text), "write 8", "{text}");
        }
        for text in ["7.5", "\"9\"", "'eight'", "1e3"] {
            assert_eq!(remedy(&rule, text), "", "{text}");
        }
        assert_eq!(remedy(&seconds(0.1..=1.0), "\"0.3\""), "write 0.3");
    }

    #[test]
    fn flag_of_yaml_1_1_is_refused_with_what_to_write() {
        assert_eq!(read(&flag(), "True"), Ok(true));
        assert_eq!(remedy(&flag(), "yes"), "write true");
        assert_eq!(remedy(&flag(), "Off"), "write false");
        assert_eq!(remedy(&flag(), "1"), "");
    }

    #[test]
    fn choice_is_read_in_any_case_and_a_slip_gets_the_nearest_name() {
        assert_eq!(read(&one_of(), "warn"), Ok(LogLevel::Warning));
        assert_eq!(read(&one_of(), "LinUCB"), Ok(PolicyKind::LinUcb));
        assert_eq!(remedy(&one_of::<PolicyKind>(), "lin-ucb"), "did you mean linucb?");
        assert_eq!(remedy(&one_of::<PolicyKind>(), "thompson"), "");
        assert_eq!(read(&one_of::<PolicyKind>(), "1"), Err(None));
    }

    #[test]
    fn text_that_yaml_took_for_a_number_gets_quotes() {
        assert_eq!(remedy(&text(), "8"), "write \"8\", in quotes");
        assert_eq!(read(&text(), "\"a\\nb\""), Err(None));
        assert_eq!(read(&text(), "' '"), Err(None));
        assert_eq!(read(&optional(text()), "~"), Ok(None));
    }

    #[test]
    fn url_without_scheme_host_or_with_credentials_says_what_to_do() {
        for good in ["http://10.100.1.5:8001/metrics", "https://h", "HTTP://[::1]:80/m", "http://h:8000"] {
            assert_eq!(read(&page_url(), good), Ok(good.to_owned()));
        }
        assert_eq!(remedy(&page_url(), "localhost:8000/metrics"), "write http://localhost:8000/metrics");
        assert_eq!(remedy(&page_url(), "10.0.0.1:8000"), "write http://10.0.0.1:8000");
        assert_eq!(remedy(&page_url(), "http://"), "empty host");
        assert_eq!(remedy(&page_url(), "http://h:99999/"), "invalid port number");
        assert_eq!(remedy(&page_url(), "\"http://h/me trics\""), "take out the blanks");
        for secret in ["http://me:secret@h/metrics", "https://token@h/metrics"] {
            assert!(remedy(&page_url(), secret).contains("vllm.bearer_token_file"), "{secret}");
        }
        for wrong in ["ftp://h/metrics", "http:h", "me:secret@h:8000", "8000", "''"] {
            assert!(read(&page_url(), wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn gpus_are_one_or_several_and_none_twice() {
        let (index, uuid) = (GpuSelector::Index(2), "GPU-0f1e2d3c-0000-1111-2222-0123456789ab");
        assert_eq!(read(&gpus(), "2"), Ok(vec![index.clone()]));
        assert_eq!(read(&gpus(), &format!("[{uuid}, 2]")), Ok(vec![GpuSelector::Uuid(uuid.into()), index]));
        assert_eq!(read(&gpus(), "[]"), Err(None));
        assert_eq!(remedy(&gpus(), "[0, 1, 0]"), "the list has 0 twice");
        assert_eq!(remedy(&gpus(), "[0, -1]"), "the list has -1");
        assert_eq!(remedy(&gpus(), "'2'"), "write 2");
        assert!(remedy(&gpus(), "MIG-1").contains("name the GPU"));
        assert!(remedy(&gpus(), "\"GPU- 1\"").contains("nvidia-smi -L"));
    }

    #[test]
    fn place_to_listen_is_a_numeric_address_with_a_port_or_off() {
        assert_eq!(read(&listen(), "127.0.0.1:9477"), Ok(Listen::LOCAL));
        assert_eq!(read(&listen(), "off"), Ok(Listen(None)));
        assert_eq!(read(&listen(), "\"[::1]:0\"").unwrap().to_string(), "[::1]:0");
        assert_eq!(remedy(&listen(), "localhost:9477"), "write \"127.0.0.1:9477\"");
        assert_eq!(remedy(&listen(), "9477"), "write \"127.0.0.1:9477\"");
        assert_eq!(remedy(&listen(), "false"), "write off");
        for wrong in ["\"\"", "gpu-node:9477", "70000", "127.0.0.1"] {
            assert_eq!(read(&listen(), wrong), Err(None), "{wrong}");
        }
    }

    #[test]
    fn host_names_have_no_ports_and_no_blanks() {
        assert_eq!(read(&host_names(2), "[gpu-node, a.example]").unwrap().len(), 2);
        assert_eq!(remedy(&host_names(2), "['gpu-node:1']"), "the list has the text \"gpu-node:1\"");
        assert_eq!(read(&host_names(1), "[a, b]"), Err(None));
    }

    #[test]
    fn some_of_a_choice_is_a_list_of_different_names() {
        use crate::config::choices::Source::{self, Connections, Utilization};
        let rule = some_of::<Source>();
        assert_eq!(read(&rule, "[connections, Utilization]"), Ok(vec![Connections, Utilization]));
        assert_eq!(read(&rule, "[]"), Err(None));
        assert_eq!(remedy(&rule, "connections"), "write [connections]");
        assert_eq!(remedy(&rule, "[conections]"), "did you mean connections?");
        assert_eq!(remedy(&rule, "[utilization, utilization]"), "name each once");
    }

    #[test]
    fn ports_are_different_numbers_and_none_is_0() {
        assert_eq!(read(&ports(2), "[5001, 8000]"), Ok(vec![5001, 8000]));
        assert_eq!(read(&ports(2), "[]"), Ok(vec![]));
        assert_eq!(remedy(&ports(2), "5001"), "write [5001]");
        assert_eq!(remedy(&ports(2), "[0]"), "the list has 0");
        assert_eq!(remedy(&ports(2), "[65536]"), "the list has 65536");
        assert_eq!(remedy(&ports(2), "[1, 1]"), "the list has 1 twice");
        assert_eq!(read(&ports(1), "[1, 2]"), Err(None));
    }

    #[test]
    fn program_is_an_absolute_path_and_its_arguments_are_taken_as_they_are() {
        let words = vec!["/usr/bin/fan".to_owned(), "all off; rm -rf x".to_owned()];
        assert_eq!(read(&argv(2), "[/usr/bin/fan, \"all off; rm -rf x\"]"), Ok(words));
        assert_eq!(read(&argv(2), "[]"), Ok(vec![]));
        assert_eq!(read(&argv(2), "[fan]"), Err(None));
        assert_eq!(read(&argv(2), "/usr/bin/fan"), Err(None));
        assert_eq!(remedy(&argv(2), "[/usr/bin/fan, 3]"), "write \"3\", in quotes");
        assert_eq!(read(&argv(1), "[/usr/bin/fan, x]"), Err(None));
    }

    #[test]
    fn memory_clocks_are_a_short_list_of_different_clocks() {
        let rule = memory_clocks(2, 1..=9000);
        assert_eq!(read(&rule, "[]"), Ok(vec![]));
        assert_eq!(read(&rule, "[8001, 405]"), Ok(vec![Mhz(8001), Mhz(405)]));
        assert_eq!(read(&rule, "[1, 2, 3]"), Err(None));
        assert_eq!(remedy(&rule, "[5, 5]"), "the list has 5 twice");
        assert_eq!(remedy(&rule, "[5, 9001]"), "the list has 9001");
        assert_eq!(remedy(&rule, "810"), "write [810]");
    }
}
