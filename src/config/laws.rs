//! Laws of the configuration, tried on random files: nothing panics, and what is accepted holds to its own rules.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::units::Seconds;

/// Values that are right for some key, and traps.
#[rustfmt::skip]
const VALUES: &[&str] = &[
    "", "~", "true", "yes", "0", "1", "3", "8", "60", "100", "250", "-1", "-0.5", "0.3", "0.6", "1.2", "2.5", "1e3",
    "1e-300", ".nan", ".inf", "18446744073709551615", "340282366920938463463374607431768211456", "\"8\"", "0x10", "010",
    "INFO", "warn", "p95", "edp", "structured", "clipped", "text", "[]", "[0, 1]", "[405, 810]", "{}", "{a: b}", "!x 1",
    "!!int 5", "&a 5", "*a", "http://h:1", "https://h/m", "GPU-0f1e2d3c-0000-1111-2222-0123456789ab", "'", "\"", "- 1",
    "---", "? 1", "|", "<<",
];

/// What YAML and this file are made of.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "vllm", "gpu", "control", "seed", "device_id", ": ", "\n", "\n  ", " ", ", ", "[", "]", "{", "}", "#",
];

/// Changes one line of the documented file, told apart by `how`.
fn mutated(lines: &mut Vec<String>, at: Index, how: u8, value: &str) {
    if lines.is_empty() {
        return;
    }
    let at = at.index(lines.len());
    match how {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[at].clone()),
        2 => lines[at] = lines[at].trim().to_owned(),
        3 => lines.insert(at, value.to_owned()),
        _ => {
            if let Some((key, _)) = lines[at].split_once(':') {
                lines[at] = format!("{key}: {value}");
            }
        }
    }
}

/// What every accepted file must lead to: values that their own rules accept.
fn holds_to_its_rules(config: &Config) -> Result<(), TestCaseError> {
    let again = Config::parse(&config.to_yaml(), "snapshot");
    prop_assert_eq!(&again.map_err(|error| TestCaseError::fail(error.to_string()))?.config, config);
    Ok(())
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_with_a_message(text in any::<String>()) {
        if let Err(error) = Config::parse(&text, "c.yaml") {
            prop_assert!(error.to_string().starts_with("c.yaml: "));
        }
    }

    #[test]
    fn any_yaml_like_text_is_parsed_or_refused(
        words in proptest::collection::vec(
            prop_oneof![
                select(VALUES).prop_map(str::to_owned),
                select(WORDS).prop_map(str::to_owned),
            ],
            0..40,
        )
    ) {
        if let Ok(loaded) = Config::parse(&words.concat(), "c.yaml") {
            holds_to_its_rules(&loaded.config)?;
        }
    }

    #[test]
    fn mutated_file_is_refused_or_gives_a_config_that_holds_to_its_rules(
        changes in proptest::collection::vec((any::<Index>(), 0_u8..10, select(VALUES)), 1..4)
    ) {
        let mut lines: Vec<String> = DOCUMENTED.lines().map(str::to_owned).collect();
        for (at, how, value) in changes {
            mutated(&mut lines, at, how, value);
        }
        match Config::parse(&lines.join("\n"), "c.yaml") {
            Ok(loaded) => holds_to_its_rules(&loaded.config)?,
            Err(error) => prop_assert!(error.to_string().lines().all(|line| line.starts_with("c.yaml: "))),
        }
    }

    #[test]
    fn snapshot_gives_back_any_accepted_values(
        name in prop_oneof![any::<String>(), select(VALUES).prop_map(str::to_owned)],
        ttft in 0.001..1e6_f64,
        threshold in -100.0..=0.0_f64,
        seed in any::<u64>(),
        level in select(vec![LogLevel::Trace, LogLevel::Warning, LogLevel::Error]),
    ) {
        let mut config = Config::default();
        let quoted = serde_json::to_string(&name).unwrap();
        if let Ok(loaded) = Config::parse(&format!("vllm: {{model_name: {quoted}}}"), "c.yaml") {
            prop_assert_eq!(loaded.config.vllm.model_name.as_ref(), Some(&name));
            config = loaded.config;
        }
        config.control.ttft_limit = Seconds(ttft);
        config.linucb.extreme_pruning_threshold = threshold;
        config.control.seed = seed;
        config.logging.file_level = level;
        holds_to_its_rules(&config)?;
    }
}
