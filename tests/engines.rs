//! Engines other than vLLM beside the real program: checked, learned from, refused, and described by users.

mod support;

use std::fs;
use std::time::Duration;

use serde_json::Value;
use support::daemon::{Bench, Daemon};
use support::eventually;
use support::page::Words;

/// An engine at work that is not vLLM.
fn bench(words: Words) -> Bench {
    let bench = Bench::new();
    bench.engine.speak(words);
    bench.engine.set_load(0.6);
    bench
}

/// The state of the server once this is so of it.
fn state(bench: &Bench, daemon: &Daemon, wanted: impl Fn(&Value) -> bool) -> Value {
    let asked = || serde_json::from_str::<Value>(&bench.run(&["status", "--json"]).out).unwrap_or_default();
    let status = eventually(asked, |status| wanted(&status["servers"][0]));
    assert!(wanted(&status["servers"][0]), "{}", daemon.tail());
    status["servers"][0].clone()
}

/// Waits until the policy has learned from windows at clocks that it chose.
fn learns(bench: &Bench, daemon: &Daemon) {
    state(bench, daemon, |state| state["learner"]["lessons"].as_u64().is_some_and(|lessons| lessons >= 3));
}

#[test]
fn llama_cpp_is_checked_and_learned_from_by_its_mean_time_per_token() {
    let bench = bench(Words::LlamaCpp);
    let checked = bench.run(&["check"]);
    for part in [
        "ok    engine: llama.cpp, 1 engine\n",
        "  inter-token latency: ",
        "a mean only, llamacpp:tokens_predicted_seconds_total (mean of the requests that ended)\n",
        "  time to first token: not told by llama.cpp: it does not time first tokens",
        "note  limits: not judged: llama.cpp tells no time to first token",
    ] {
        assert!(checked.out.contains(part), "{part:?} in {checked:?}");
    }
    assert_eq!(checked.code, Some(0), "{checked:?}");

    let mut daemon = bench.start(&["--dry-run"]);
    // Past its start, and with rewards for what it measures.
    let state = state(&bench, &daemon, |state| {
        state["mode"] == "EXPLORATION" && state["round"]["reward"].is_number()
    });
    assert_eq!(state["delay"], "mean time per token of the requests that ended");
    let not_judged = state["not_judged"].as_array().expect("a list");
    assert_eq!(not_judged.len(), 1, "{state}");
    let text = bench.run(&["status"]).out;
    for part in
        ["not judged  llama.cpp tells no time to first token", "delay       mean time per token of the"]
    {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    daemon.stop();
    let log = daemon.log();
    assert_eq!(log.matches("a latency limit of the defaults is not judged").count(), 1, "{log}");
    let rounds = bench.rounds();
    assert!(
        rounds.iter().any(|round| round.reward.is_some())
            && rounds.iter().all(|round| round.ttft_avg.is_none())
    );
}

#[test]
fn clocks_are_chosen_and_learned_from_beside_either() {
    for words in [Words::LlamaCpp, Words::Sglang] {
        let bench = bench(words);
        let mut daemon = bench.start(&[]);
        learns(&bench, &daemon);
        daemon.stop();
        bench.wait_for_release(&daemon);
    }
}

#[test]
fn sglang_is_checked_and_learned_from() {
    let bench = bench(Words::Sglang);
    let checked = bench.run(&["check"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    for part in [
        "ok    engine: SGLang, 1 engine\n",
        "models: tiny\n",
        "  generated tokens: ",
        "sglang:realtime_tokens_total",
    ] {
        assert!(checked.out.contains(part), "{part:?} in {checked:?}");
    }
    assert!(!checked.out.contains("not judged"), "{checked:?}");
    let mut daemon = bench.start(&["--dry-run"]);
    let state = state(&bench, &daemon, |state| {
        state["mode"] == "EXPLORATION" && state["round"]["reward"].is_number()
    });
    assert_eq!(
        (&state["delay"], &state["not_judged"]),
        (&"mean time between tokens".into(), &serde_json::json!([]))
    );
    daemon.stop();
}

#[test]
fn limit_that_was_set_and_cannot_be_judged_refuses_its_server_and_no_other() {
    let bench = bench(Words::LlamaCpp).set("control.slo_statistic", "p95");
    let why = "slo_statistic is p95, but llama.cpp tells the mean of the time per output token only, no p95";
    let checked = bench.run(&["check"]);
    assert!(checked.out.contains(&format!("FAIL  limits: server: {why}")), "{checked:?}");
    assert_eq!(checked.code, Some(64), "{checked:?}");
    let mut daemon = bench.start(&[]);
    let said = eventually(|| daemon.log().contains(why), |said| *said);
    assert!(said, "{}", daemon.tail());
    daemon.stop();
    let writes = bench.mock.history();
    assert!(
        writes.iter().all(|write| write.call.contains("Reset")),
        "its clocks stay the driver's: {writes:?}"
    );
    // Where the engine is named, the file alone tells.
    let named = Bench::new().server("chat", &[0], ", engine: llama.cpp, ttft_limit: 0.5");
    let config = named.config();
    let checked = named.run(&["check-config", config.to_str().expect("a plain path")]);
    assert_eq!(checked.code, Some(64), "{checked:?}");
    assert!(
        checked.err.contains("servers.chat.ttft_limit is 0.500 s, must be what can be judged"),
        "{checked:?}"
    );
}

#[test]
fn engine_that_is_named_is_not_woken() {
    let bench = Bench::new().server("chat", &[0], ", engine: llama.cpp");
    let engine = &bench.servers[0];
    engine.speak(Words::LlamaCpp);
    engine.sleep(true);
    let mut daemon = bench.start(&["--dry-run"]);
    let said = eventually(|| daemon.log().contains("the engine sleeps"), |said| *said);
    assert!(said, "{}", daemon.tail());
    assert_eq!(engine.served(), 0, "its page is left alone");
    engine.sleep(false);
    engine.set_load(0.6);
    let served = eventually(|| engine.served(), |served| *served > 3);
    assert!(served > 3, "{}", daemon.tail());
    daemon.stop();
}

#[test]
fn llama_server_without_work_is_left_alone_until_it_works_again() {
    let bench = bench(Words::LlamaCpp);
    let mut daemon = bench.start(&[]);
    learns(&bench, &daemon);
    bench.engine.set_load(0.0);
    let asked_in_two_seconds = || {
        let before = bench.engine.served();
        std::thread::sleep(Duration::from_secs(2));
        bench.engine.served() - before
    };
    let asked = eventually(asked_in_two_seconds, |asked| *asked == 0);
    assert_eq!(asked, 0, "its page is read on without end: {}", daemon.tail());
    bench.engine.set_load(0.6);
    let before = bench.engine.served();
    let asked = eventually(|| bench.engine.served() - before, |asked| *asked > 3);
    assert!(asked > 3, "{}", daemon.tail());
    learns(&bench, &daemon);
    daemon.stop();
    bench.wait_for_release(&daemon);
}

const OWN: &str = "name = \"Quill\"\n[recognise]\nprefixes = [\"quill_\"]\n[signals]\nrunning = { names = [\"active\"] }\n\
                   generation_tokens = { names = [\"tokens_out\"] }\n[cannot]\nttft = \"it has no clock\"\n";

#[test]
fn profile_of_a_user_s_own_is_checked_alone_on_a_page_and_in_a_configuration() {
    let bench = Bench::new();
    let (file, page) = (bench.path("quill.toml"), bench.path("page.txt"));
    let check = |arguments: &[&str]| {
        bench.run(&[&["check", "--engine-file", file.to_str().expect("a path")], arguments].concat())
    };
    fs::write(&file, OWN).expect("a file");
    fs::write(&page, "quill_active 3\n").expect("a file");
    let alone = check(&[]);
    assert_eq!((alone.code, alone.out.contains("ok, Quill")), (Some(0), true), "{alone:?}");
    let page = ["--page", page.to_str().expect("a path")];
    let read = check(&page);
    for part in [
        "  running requests: 3, quill_active\n",
        "  generated tokens: missing, needed (quill_tokens_out)\n",
        "  time to first token: not told by Quill: it has no clock\n",
        "  waiting requests: not told by Quill: the profile does not name it\n",
    ] {
        assert!(read.out.contains(part), "{part:?} in {read:?}");
    }
    assert_eq!(read.code, Some(1), "{read:?}");
    fs::write(&file, format!("speed = 1\n{OWN}\nfinished = 2")).expect("a file");
    let wrong = check(&page);
    assert_eq!(wrong.code, Some(64), "{wrong:?}");
    for part in
        ["quill.toml: speed is not a known key", "quill.toml: cannot.finished is 2, must be the reason"]
    {
        assert!(wrong.err.contains(part), "{part:?} in {wrong:?}");
    }

    let engines = bench.path("engines");
    fs::create_dir(&engines).expect("a directory");
    // In place of the built-in one: what vLLM's page is read by now.
    let own = OWN
        .replace("Quill", "vllm")
        .replace("quill_", "vllm:")
        .replace("\"active\"", "\"num_requests_running\"");
    let own = own.replace("tokens_out", "generation_tokens_total");
    fs::write(engines.join("vllm.toml"), own).expect("a file");
    let bench = bench.set("engines.directory", &format!("{engines:?}"));
    bench.engine.set_load(0.6);
    let checked = bench.run(&["check"]);
    for part in [
        "ok    engine file: vllm\n",
        "ok    engine: vllm, 1 engine\n",
        "not judged: vllm tells no time to first token (it has no clock)",
    ] {
        assert!(checked.out.contains(part), "{part:?} in {checked:?}");
    }
    assert!(!checked.out.contains("prompt tokens: 0"), "{checked:?}");
    fs::write(engines.join("b.toml"), "name = 1").expect("a file");
    let config = bench.config();
    let wrong = bench.run(&["check-config", config.to_str().expect("a plain path")]);
    assert_eq!(wrong.code, Some(64), "{wrong:?}");
    assert!(wrong.err.contains("b.toml: name is 1, must be letters"), "{wrong:?}");
}
