//! The configuration as its users meet it: files in, values or complaints out.

use std::collections::BTreeMap;

use super::*;
use crate::gpu::GpuSelector;
use crate::units::{Mhz, Seconds};

const AGFT_FILE: &str = include_str!("../../tests/config/agft-original.yaml");

fn parse(text: &str) -> Loaded {
    Config::parse(text, "c.yaml").unwrap()
}

/// The lines of the complaint about `text`.
fn complaint(text: &str) -> Vec<String> {
    let error = Config::parse(text, "c.yaml").unwrap_err().to_string();
    error.lines().map(str::to_owned).collect()
}

/// Section, key and value text of every key, as the program itself writes them.
fn every_key() -> Vec<(String, String, String)> {
    let Node::Map(sections) = yaml::parse(&Config::default().to_yaml()).unwrap() else {
        panic!("no mapping")
    };
    let mut keys = Vec::new();
    for (section, value) in sections {
        let Node::Map(entries) = value else { panic!("{section} is no mapping") };
        keys.extend(entries.into_iter().map(|(key, value)| (section.clone(), key, value.to_string())));
    }
    keys
}

/// What a comment must repeat of a rule: "1 to 500" of "a whole number from 1 to 500 (MHz)".
fn essence(must_be: &str) -> &str {
    let rule = must_be.rsplit_once(" from ").map_or(must_be, |(_, range)| range);
    let rule = ["one of ", "an ", "a "].iter().fold(rule, |rule, start| rule.trim_start_matches(start));
    let ends = [" (", ", a ", ", on ", ", not ", " or null", " with "];
    ends.iter().fold(rule, |rule, end| rule.split(end).next().unwrap_or(rule))
}

#[test]
fn documented_file_equals_the_defaults_and_raises_no_warning() {
    assert_eq!(parse(DOCUMENTED), Loaded { config: Config::default(), engines: vec![], warnings: vec![] });
}

#[test]
fn file_that_gives_nothing_has_every_default() {
    for text in ["{}", "---\n{}\n", "vllm:\ncontrol:\nadaptive_sampling: {}\n"] {
        assert_eq!(
            parse(text),
            Loaded { config: Config::default(), engines: vec![], warnings: vec![] },
            "{text:?}"
        );
    }
}

#[test]
fn every_key_is_documented_with_its_default_and_its_rule() {
    // A comment starts behind the value and goes on below, in the same column.
    let mut documented: BTreeMap<(String, String), (String, String)> = BTreeMap::new();
    let (mut section, mut last) = (String::new(), None);
    for line in DOCUMENTED.lines() {
        assert!(line.chars().count() <= 120, "{line}");
        let (content, comment) = line.split_once(" #").unwrap_or((line, ""));
        if content.trim().is_empty() {
            if let Some((_, text)) = last.as_ref().and_then(|key| documented.get_mut(key)) {
                *text += comment;
            }
        } else if let Some((key, value)) = content.strip_prefix("  ").and_then(|entry| entry.split_once(": "))
        {
            let key = (section.clone(), key.to_owned());
            assert!(
                documented.insert(key.clone(), (value.trim().replace('"', ""), comment.into())).is_none()
            );
            last = Some(key);
        } else if let Some(name) = content.strip_suffix(':') {
            section = name.to_owned();
        }
    }
    // A value that no key accepts makes every key state its rule.
    let wrong = |(section, key): &(String, String)| format!("{section}: {{{key}: !wrong x}}\n");
    for (path, (default, comment)) in &documented {
        assert!(comment.contains(&format!("[{default}]")), "{path:?}: no default in {comment:?}");
        let Err(ConfigError::Invalid { problems, .. }) = Config::parse(&wrong(path), "") else {
            panic!("{path:?}")
        };
        let [Problem::Value { must_be, .. }] = problems.as_slice() else { panic!("{problems:?}") };
        assert!(comment.contains(essence(must_be)), "{path:?}: {:?} not in {comment:?}", essence(must_be));
    }
    let known: Vec<_> = every_key().into_iter().map(|(section, key, _)| (section, key)).collect();
    assert_eq!(documented.len(), known.len());
    assert!(known.iter().all(|path| documented.contains_key(path)));
}

#[test]
fn file_of_agft_loads_as_it_is_and_names_the_keys_without_use() {
    let Loaded { config, warnings, .. } = parse(AGFT_FILE);
    let mut expected = Config::default();
    expected.vllm.prometheus_url = "http://10.100.1.5:8001/metrics".into();
    expected.gpu.device_id = vec![GpuSelector::Index(2)];
    // AGFT's file has its own limits.
    (expected.control.ttft_limit, expected.control.tpot_limit) = (Seconds(1000.0), Seconds(0.8));
    assert_eq!(config, expected);
    assert_eq!(
        (
            config.control.ttft_limit,
            config.linucb.lambda_reg.to_bits(),
            config.linucb.cascade_pruning_threshold
        ),
        (Seconds(1000.0), 1_f64.to_bits(), Mhz(800))
    );
    let unused: Vec<_> = warnings
        .iter()
        .map(|warning| match warning {
            Warning::Unused { key, .. } => key.as_str(),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(
        unused,
        [
            "adaptive_sampling.reward_threshold",
            "control.convergence_p_value_threshold",
            "model.type",
            "metrics.sampling_interval"
        ]
    );
    assert_eq!(warnings[2].to_string(), "model.type is not used; control.policy chooses the learner");
}

#[test]
fn files_of_agft_s_earlier_versions_load_with_a_warning_for_each_dead_key() {
    for (text, dead) in [
        (include_str!("../../tests/config/agft-early.yaml"), 8),
        (include_str!("../../tests/config/agft-slo.yaml"), 16),
    ] {
        let warnings = Config::parse(text, "old.yaml").unwrap().warnings;
        let unused: Vec<_> =
            warnings.iter().filter(|warning| matches!(warning, Warning::Unused { .. })).collect();
        assert_eq!(unused.len(), dead, "{unused:#?}");
    }
}

#[test]
fn hint_is_a_key_that_means_the_same_or_none() {
    let remedy = |text: &str| complaint(text)[0].clone();
    for unrelated in
        ["logging: {colour: x}", "gpu: {fan_curve: 1}", "model: {keep_last: 1}", "idle: {lever2go: 1}"]
    {
        assert!(remedy(unrelated).contains("known here: "), "{}", remedy(unrelated));
    }
    assert!(remedy("adaptive_sampling: {other: 1}").ends_with("no key of this section is used; take it out"));
    assert!(!remedy("loging: {}").ends_with("known here: "));
}

#[test]
fn config_reports_every_bad_key_at_once() {
    let text = "
vllm:
  prometheus_url: localhost:8000/metrics
  outage_after_s: 0.4
control:
  decision_interval_s: 0.5
  tpot_limt: 0.2
  convergence_window: \"50\"

  # again
  convergence_window: 60
  seed: null
gpu: 3
linucb: {lambda_reg: .nan, enable_action_pruning: yes}
loging: {}
";
    assert_eq!(
        complaint(text),
        [
            "c.yaml: vllm.prometheus_url is the text \"localhost:8000/metrics\", must be an http:// or https:// URL \
             with a host; write http://localhost:8000/metrics",
            "c.yaml: control.seed is empty (null), must be a whole number from 0 to 18446744073709551615; take the line \
             out for the default",
            "c.yaml: control.convergence_window is given 2 times (lines 8, 11), must be given once",
            "c.yaml: control.convergence_window is the text \"50\", must be a whole number from 10 to 10000; write 50",
            "c.yaml: linucb.lambda_reg is NaN, must be a number from 0.001 to 1000000",
            "c.yaml: linucb.enable_action_pruning is the text \"yes\", must be true or false; write true",
            "c.yaml: vllm.outage_after_s is 0.4, must be at least control.decision_interval_s, which is 0.5; change \
             one of the two",
            "c.yaml: gpu is 3, must be a mapping of keys to values",
            "c.yaml: loging is not a known key; did you mean logging?",
            "c.yaml: control.tpot_limt is not a known key; did you mean control.tpot_limit?",
        ]
    );
}

#[test]
fn every_key_refuses_a_wrong_type_and_all_are_reported_together() {
    let mut text = String::new();
    let mut section = String::new();
    let keys = every_key();
    for (home, key, _) in &keys {
        if *home != section {
            section.clone_from(home);
            text += &format!("{section}:\n");
        }
        text += &format!("  {key}: {{a: 1}}\n");
    }
    let lines = complaint(&text);
    assert_eq!(lines.len(), keys.len());
    for ((section, key, _), line) in keys.iter().zip(lines) {
        assert!(line.starts_with(&format!("c.yaml: {section}.{key} is a mapping of 1, must be ")), "{line}");
    }
}

#[test]
fn unknown_key_is_answered_with_the_one_that_was_meant() {
    let remedy = |text: &str| complaint(text).concat();
    assert!(remedy("vllm: {ttft_limit: 1}").ends_with("move it to section control: control.ttft_limit"));
    assert!(remedy("ttft_limit: 1").ends_with("; move it to section control: control.ttft_limit"));
    assert!(remedy("gpu: {device: 1}").ends_with("did you mean gpu.device_id?"));
    assert!(remedy("control: {Policy: linucb}").ends_with("did you mean control.policy?"));
    assert!(remedy("idle: {xyzzy: 1}").contains("known here: enabled, max_ttft_rise_percent, sources, "));
    assert!(remedy("xyzzy: {}").contains("known here: vllm, engines, gpu, "));
    assert!(remedy("\"\\e[31m\": 1").contains("\\u001b[31m is not a known key"));
    assert!(remedy("? [a]\n: 1").contains("a list of 1 is not a known key"));
    assert!(remedy("idle: {1: 1}").contains("idle.1 is not a known key"));
}

#[test]
fn repeated_section_is_refused_and_what_it_holds_is_still_checked() {
    let lines = complaint("idle:\n  enabled: 1\nmodel: {}\nidle:\n  enabled: 2\n");
    assert_eq!(lines[0], "c.yaml: idle.enabled is given 2 times (lines 2, 5), must be given once");
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[3], "c.yaml: idle is given 2 times (lines 1, 4), must be given once");
    let flow = complaint("{idle: {enabled: true, enabled: true}}");
    assert_eq!(flow, ["c.yaml: idle.enabled is given 2 times, must be given once"]);
}

#[test]
fn keys_that_contradict_each_other_are_reported_unless_one_is_wrong_anyway() {
    assert_eq!(
        complaint("control: {decision_interval_s: 5}"),
        [
            "c.yaml: vllm.outage_after_s is 1, must be at least control.decision_interval_s, which is 5; change one of \
          the two"
        ]
    );
    assert!(
        complaint("linucb: {initial_alpha: 0.05}")[0].contains("linucb.min_alpha is 0.1, must be at most")
    );
    assert!(complaint("control: {convergence_top_k: 101}")[0].contains("at most control.convergence_window"));
    for section in ["idle", "park"] {
        assert!(
            complaint(&format!("{section}: {{temperature_high_c: 70}}"))[0]
                .contains(&format!("{section}.temperature_low_c is 75, must be at most"))
        );
    }
    for ports in ["park: {ports: [5001]}", "park: {sources: [connections]}"] {
        let must_be = "must be given if, and only if, park.sources has connections";
        assert!(complaint(ports)[0].contains(must_be), "{ports}");
    }
    parse("park: {sources: [connections], ports: [5001], temperature_high_c: null}");
    let wrong_anyway = complaint("{control: {decision_interval_s: 5}, vllm: {outage_after_s: x}}");
    assert_eq!(wrong_anyway.len(), 1);
}

#[test]
fn key_of_parking_that_cannot_work_for_these_gpus_is_refused_with_the_reason() {
    for (text, why) in [
        (
            "idle: {pstate: 8}",
            "idle.pstate is 8, must be left out: performance states are forced on GPUs without a server",
        ),
        (
            "idle: {lever: pstate}",
            "idle.lever is pstate, must be core, memory, both or auto: performance states",
        ),
        (
            "idle: {wake_core_mhz: 900}",
            "idle.wake_core_mhz is 900, must be left out: the server's policy chooses",
        ),
        (
            "idle: {sources: [metrics]}",
            "idle.sources is metrics, must be metrics, which is asked anyway, and",
        ),
        (
            "park: {max_ttft_rise_percent: 5}",
            "park.max_ttft_rise_percent is 5, must be left out: GPUs without a server",
        ),
        (
            "park: {sources: [metrics]}",
            "park.sources is metrics, must be without metrics: these GPUs have no server",
        ),
    ] {
        let lines = complaint(text);
        assert!(lines.len() == 1 && lines[0].contains(why), "{lines:?}");
    }
    let server = "servers: [{name: a, metrics_url: 'http://h:1/metrics', idle: {pstate: 3, lever: pstate}}]";
    let lines = complaint(server);
    assert!(
        lines[0].starts_with("c.yaml: servers.a.idle.pstate is 3")
            && lines[1].contains("idle.lever is pstate"),
        "{lines:?}"
    );
}

#[test]
fn odd_but_valid_combinations_are_accepted_with_a_warning() {
    let warnings = |text: &str| parse(text).warnings;
    let page = |url: &str, more: &str| format!("vllm: {{prometheus_url: \"{url}\"{more}}}");
    let token = ", bearer_token_file: /run/token";
    assert_eq!(warnings(&page("http://h/metrics", token)), [Warning::TokenInClear]);
    for fine in
        ["https://h/metrics", "http://127.0.0.1:8000/metrics", "http://[::1]/metrics", "http://localhost/m"]
    {
        assert_eq!(warnings(&page(fine, token)), [], "{fine}");
    }
    let no_path = [Warning::NoPath { usual: "http://h:8000/metrics".into() }];
    assert_eq!(
        (warnings(&page("http://h:8000", "")), warnings(&page("http://h:8000/", ""))),
        (no_path.to_vec(), no_path.to_vec())
    );
    for (text, key) in [
        ("control: {ignore_slo: true, max_slowdown_percent: 5}", "control.max_slowdown_percent"),
        ("gpu: {memory_frequencies: [810]}", "gpu.memory_frequencies"),
        ("vllm: {tls_ca_file: ca.pem}", "vllm.tls_ca_file"),
    ] {
        assert!(
            matches!(warnings(text).as_slice(), [Warning::NoEffect { key: at, .. }] if *at == key),
            "{text}"
        );
    }
}

#[test]
fn unreadable_files_each_get_their_own_error() {
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Config::load(&path).unwrap_err()
    };
    assert!(matches!(Config::load(&dir.path().join("none")), Err(ConfigError::Missing { .. })));
    assert!(matches!(Config::load(dir.path()), Err(ConfigError::Directory { .. })));
    assert!(matches!(Config::load(&dir.path().join("a\0b")), Err(ConfigError::Unreadable { .. })));
    assert!(matches!(load("empty", b""), ConfigError::Empty { .. }));
    assert!(matches!(load("comment", b"# nothing\n"), ConfigError::Empty { .. }));
    assert!(matches!(load("latin1", b"idle: {}\n# caf\xe9\n"), ConfigError::NotUtf8 { line: 2, .. }));
    let limit = usize::try_from(MAX_BYTES).unwrap();
    assert!(matches!(load("large", &vec![b'#'; limit + 1]), ConfigError::TooLarge { .. }));
    assert!(matches!(load("just_not_large", &vec![b'#'; limit]), ConfigError::Empty { .. }));
    assert!(matches!(load("tab", b"idle:\n\tenabled: true\n"), ConfigError::Syntax { tab: true, .. }));
    assert!(matches!(load("open", b"idle: {enabled: true\n"), ConfigError::Syntax { tab: false, .. }));
    assert!(matches!(load("two", b"idle: {}\n---\n{}\n"), ConfigError::SecondDocument { .. }));
    let many = format!("idle: [{}]", "1, ".repeat(yaml::MAX_VALUES));
    assert!(matches!(load("many", many.as_bytes()), ConfigError::TooManyValues { .. }));
    let error = load("list", b"- vllm\n").to_string();
    assert!(
        error.ends_with(
            "list: the file is a list of 1, must be a mapping of sections (vllm, gpu, control, ...)"
        )
    );
}

#[test]
fn errors_never_show_a_password() {
    for url in [
        "http://me:hunter2@h/metrics",
        "me:hunter2@h:8000/metrics",
        "ftp://me:hunter2@h",
        "http://a:hunter2@",
    ] {
        let error = complaint(&format!("vllm: {{prometheus_url: \"{url}\"}}")).concat();
        assert!(error.contains("prometheus_url") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn loaded_file_equals_its_text_parsed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    std::fs::write(&path, AGFT_FILE).unwrap();
    assert_eq!(Config::load(&path).unwrap(), parse(AGFT_FILE));
}
