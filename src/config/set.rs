//! A configuration with some keys set otherwise, as `--set SECTION.KEY=VALUE` asks.

use std::fmt::Write;

use serde_json::Value;

use super::{Config, ConfigError, Loaded, old_keys};

impl Config {
    /// This configuration with the text of some values (YAML) replaced, checked as a file is.
    /// Errors: [`ConfigError`] as for a file that says so; `origin` stands for its name.
    pub(crate) fn with(&self, sets: &[(String, String)], origin: &str) -> Result<Loaded, ConfigError> {
        let mut sections: Vec<(String, Vec<(String, String)>)> = Vec::new();
        let mut tops: Vec<(String, String)> = Vec::new();
        // A configuration is a mapping of mappings but for its servers, and what JSON writes on one line YAML reads.
        if let Ok(Value::Object(map)) = serde_json::to_value(self) {
            for (section, keys) in map {
                let Value::Object(keys) = keys else {
                    tops.push((section, keys.to_string()));
                    continue;
                };
                sections
                    .push((section, keys.into_iter().map(|(key, value)| (key, value.to_string())).collect()));
            }
        }
        for (path, value) in sets {
            let (section, key) = path.split_once('.').unwrap_or((path, ""));
            let at = sections.iter().position(|(name, _)| name == section).unwrap_or_else(|| {
                sections.push((section.to_owned(), Vec::new()));
                sections.len() - 1
            });
            if let Some([home, name]) = old_keys::new_name(section, key) {
                // What is set by an old name is not given by the new one.
                let keys = sections.iter_mut().filter(|(section, _)| section == home);
                keys.for_each(|(_, keys)| keys.retain(|(key, _)| key != name));
            }
            let Some((_, keys)) = sections.get_mut(at) else { continue };
            match keys.iter_mut().find(|(name, _)| name == key) {
                Some((_, old)) => old.clone_from(value),
                None => keys.push((key.to_owned(), value.clone())),
            }
        }
        let mut text = String::new();
        for (key, value) in tops {
            let _ = writeln!(text, "{key}: {value}");
        }
        for (section, keys) in sections {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{section}:");
            for (key, value) in keys {
                let _ = writeln!(text, "  {key}: {value}");
            }
        }
        Self::parse(&text, origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PolicyKind;
    use crate::units::Seconds;

    fn set(key: &str, value: &str) -> Result<Config, String> {
        let sets = [(key.to_owned(), value.to_owned())];
        Config::default().with(&sets, "--set").map(|loaded| loaded.config).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_set_and_all_others_stay() {
        assert_eq!(Config::default().with(&[], "--set").unwrap().config, Config::default());
        let mut want = Config::default();
        want.control.ttft_limit = Seconds(0.5);
        assert_eq!(set("control.ttft_limit", "0.5"), Ok(want));
        assert_eq!(set("control.policy", "linucb").unwrap().control.policy, PolicyKind::LinUcb);
    }

    #[test]
    fn file_of_agft_with_nothing_set_is_itself() {
        let file =
            Config::parse(include_str!("../../tests/config/agft-original.yaml"), "c.yaml").unwrap().config;
        assert_eq!(file.with(&[], "--set").unwrap().config, file);
    }

    #[test]
    fn what_a_file_may_not_say_is_refused_as_in_a_file() {
        let unknown = set("control.ttft_limt", "0.5").unwrap_err();
        assert!(unknown.contains("control.ttft_limit"), "{unknown}");
        let range = set("control.ttft_limit", "soon").unwrap_err();
        assert!(range.contains("control.ttft_limit") && range.contains("soon"), "{range}");
        assert!(set("contrl.policy", "linucb").unwrap_err().contains("control"));
        assert!(set("control.policy", "a\nb: c").is_err());
    }
}
