//! The socket beside clients that behave and clients that do not.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream as Stream;

use super::*;
use crate::control::Mode;
use crate::export::testing::Stage;
use crate::park::instances::Roster;
use crate::view::{ParkMode, ParkStanding, State, testing};

struct Talk(BufReader<Stream>);

impl Talk {
    fn with(server: &Server) -> Self {
        let stream = Stream::connect(server.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(BufReader::new(stream))
    }

    fn say(&mut self, text: &str) {
        let _ = self.0.get_mut().write_all(text.as_bytes());
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        let _ = self.0.read_line(&mut line);
        line
    }

    fn ask(&mut self, request: &str) -> Answer {
        self.say(&format!("{request}\n"));
        serde_json::from_str(&self.hear()).unwrap()
    }
}

type Started = (tempfile::TempDir, Server, mpsc::Receiver<Directed>, Stage);

fn start() -> Started {
    start_with(Stage::of_one())
}

fn start_with(stage: Stage) -> Started {
    let dir = tempfile::tempdir().unwrap();
    let (server, orders) = Server::start(dir.path(), stage.published.clone()).unwrap();
    (dir, server, orders, stage)
}

fn one(state: State) -> Answer {
    Answer::state(testing::of(vec![state], None))
}

fn directed(order: Order, server: Option<&str>) -> Option<Directed> {
    Some(Directed { server: server.map(str::to_owned), order })
}

#[test]
fn status_is_the_stageed_state_and_the_talk_goes_on() {
    let (_dir, server, _orders, stage) = start();
    let mut talk = Talk::with(&server);
    assert_eq!(talk.ask(r#"{"cmd":"status"}"#), one(testing::state()));
    let state = State { mode: Mode::Idle, ..testing::state() };
    stage.publish(state.clone());
    assert_eq!(talk.ask(r#"{"cmd":"status"}"#), one(state));
}

#[test]
fn history_is_the_stageed_points() {
    let (_dir, server, _orders, _stage) = start();
    let answer = Talk::with(&server).ask(r#"{"cmd":"history"}"#);
    let mut points = History::default();
    points.push(&testing::state());
    assert_eq!(answer, Answer::History { ok: true, history: points });
}

#[test]
fn watch_goes_on_until_the_client_hangs_up() {
    let (_dir, server, _orders, _stage) = start();
    let mut talk = Talk::with(&server);
    talk.say("{\"cmd\":\"watch\",\"every_s\":0.1}\n");
    for _ in 0..3 {
        assert!(talk.hear().starts_with(r#"{"ok":true,"state":{"#));
    }
}

#[test]
fn pause_is_answered_when_the_state_shows_it() {
    let (_dir, server, mut orders, stage) = start();
    let mut talk = Talk::with(&server);
    talk.say("{\"cmd\":\"pause\"}\n");
    assert_eq!(orders.blocking_recv(), directed(Order::Pause, None));
    // Asked for, not yet confirmed by the driver.
    stage.publish(State { mode: Mode::Paused, ..testing::state() });
    std::thread::sleep(Duration::from_millis(100));
    let paused = State { mode: Mode::Paused, in_force: None, ..testing::state() };
    stage.publish(paused.clone());
    assert_eq!(serde_json::from_str::<Answer>(&talk.hear()).unwrap(), one(paused));
}

#[test]
fn an_order_to_one_server_is_answered_when_that_one_has_carried_it_out() {
    let (_dir, server, mut orders, stage) = start_with(Stage::of_two());
    let mut talk = Talk::with(&server);
    talk.say("{\"cmd\":\"pause\",\"server\":\"chat\"}\n");
    assert_eq!(orders.blocking_recv(), directed(Order::Pause, Some("chat")));
    let paused = State { mode: Mode::Paused, in_force: None, ..testing::state() };
    stage.publish(paused.clone());
    // Of that server alone; the GPU without one goes on parking.
    assert_eq!(serde_json::from_str::<Answer>(&talk.hear()).unwrap(), one(paused));
    talk.say("{\"cmd\":\"resume\",\"server\":\"code\"}\n");
    assert_eq!(orders.blocking_recv(), directed(Order::Resume, Some("code")));
    assert!(talk.hear().contains("not carried it out yet"));
}

#[test]
fn an_order_to_all_waits_for_every_server_and_for_the_gpus_without_one() {
    let (_dir, server, mut orders, stage) = start_with(Stage::of_two());
    let mut talk = Talk::with(&server);
    talk.say("{\"cmd\":\"pause\"}\n");
    assert_eq!(orders.blocking_recv(), directed(Order::Pause, None));
    let paused = State { mode: Mode::Paused, in_force: None, ..testing::state() };
    stage.publish(paused.clone());
    std::thread::sleep(Duration::from_millis(100));
    let mut park = testing::host().park.unwrap();
    (park.mode, park.gpus[0].in_force) = (ParkMode::Paused, None);
    park.gpus.iter_mut().for_each(|gpu| gpu.state = ParkStanding::Paused);
    stage.park.send_replace(Arc::new(park.clone()));
    let wanted = testing::of(vec![paused, testing::host().servers.remove(1)], Some(park));
    assert_eq!(serde_json::from_str::<Answer>(&talk.hear()).unwrap(), Answer::state(wanted));
}

#[test]
fn a_server_whose_loop_has_ended_holds_up_no_order_to_the_others() {
    let (_dir, server, mut orders, mut stage) = start_with(Stage::of_two());
    stage.loops.pop();
    let mut talk = Talk::with(&server);
    talk.say("{\"cmd\":\"resume\"}\n");
    assert_eq!(orders.blocking_recv(), directed(Order::Resume, None));
    // It was paused when it ended, and stays so in the picture.
    assert_eq!(serde_json::from_str::<Answer>(&talk.hear()).unwrap(), Answer::state(testing::host()));
    talk.say("{\"cmd\":\"resume\",\"server\":\"code\"}\n");
    assert!(talk.hear().contains("not carried it out yet"));
}

#[test]
fn a_server_that_is_not_there_is_told_with_those_that_are_and_the_talk_goes_on() {
    let (_dir, server, mut orders, _stage) = start_with(Stage::of_two());
    let mut talk = Talk::with(&server);
    let unknown = Answer::error(r#"no server is called "chta" here; there is: chat, code"#);
    for command in ["pause", "resume", "status", "history"] {
        assert_eq!(talk.ask(&format!(r#"{{"cmd":"{command}","server":"chta"}}"#)), unknown, "{command}");
    }
    assert_eq!(talk.ask(r#"{"cmd":"history"}"#), Answer::error("say which server; there is: chat, code"));
    assert!(matches!(talk.ask(r#"{"cmd":"history","server":"code"}"#), Answer::History { .. }));
    assert_eq!(talk.ask(r#"{"cmd":"status"}"#), Answer::state(testing::host()));
    assert_eq!(talk.ask(r#"{"cmd":"status","server":"chat"}"#), one(testing::state()));
    assert!(orders.try_recv().is_err(), "nothing was ordered");
}

#[test]
fn nonsense_and_endless_lines_end_the_talk_with_a_reason() {
    let (_dir, server, _orders, _stage) = start();
    for (said, why) in [("nonsense\n".to_owned(), "not a request"), ("x".repeat(1 << 20), "65536 bytes")] {
        let mut talk = Talk::with(&server);
        talk.say(&said);
        let answer = talk.hear();
        // One that still talks may be cut off before it hears why.
        assert!(answer.contains(why) || (answer.is_empty() && said.len() > MAX_REQUEST), "{answer}");
        assert_eq!(talk.hear(), "");
    }
    assert!(matches!(Talk::with(&server).ask(r#"{"cmd":"status"}"#), Answer::State { .. }));
}

#[test]
fn silent_clients_give_their_places_to_those_who_ask() {
    let (_dir, server, _orders, _stage) = start();
    let mut first = Talk::with(&server);
    let crowd: Vec<Talk> = (0..CONNECTIONS + 8).map(|_| Talk::with(&server)).collect();
    for _ in 0..3 {
        assert!(matches!(Talk::with(&server).ask(r#"{"cmd":"status"}"#), Answer::State { .. }));
    }
    assert_eq!(first.hear(), "", "the one that was silent the longest");
    drop(crowd);
}

#[test]
fn clients_that_watch_keep_their_places_from_silent_ones_and_give_them_to_those_who_ask() {
    let (_dir, server, _orders, _stage) = start();
    let watch = || {
        let mut talk = Talk::with(&server);
        talk.say("{\"cmd\":\"watch\",\"every_s\":0.1}\n");
        assert!(talk.hear().contains("\"ok\":true"));
        talk
    };
    let mut watching: Vec<Talk> = (0..CONNECTIONS / 2).map(|_| watch()).collect();
    let silent: Vec<Talk> = (0..CONNECTIONS / 2).map(|_| Talk::with(&server)).collect();
    std::thread::sleep(2 * ABOUT_TO_SPEAK);
    watching.extend((0..CONNECTIONS / 2).map(|_| watch()));
    assert!(watching.iter_mut().all(|talk| talk.hear().contains("\"ok\":true")));
    drop(silent);
    assert!(matches!(Talk::with(&server).ask(r#"{"cmd":"status"}"#), Answer::State { .. }));
    let heard =
        |talk: &mut Talk| std::iter::repeat_with(|| talk.hear()).take(100).any(|line| line.is_empty());
    assert!(heard(&mut watching[0]), "the one that asked the longest ago is cut off");
}

#[test]
fn clients_that_wait_for_their_answer_keep_their_places() {
    let (_dir, server, mut orders, _stage) = start();
    let mut crowd: Vec<Talk> = (0..CONNECTIONS)
        .map(|_| {
            let mut talk = Talk::with(&server);
            talk.say("{\"cmd\":\"pause\"}\n");
            assert_eq!(orders.blocking_recv(), directed(Order::Pause, None));
            talk
        })
        .collect();
    assert!(Talk::with(&server).hear().contains("try again"));
    assert!(crowd.iter_mut().all(|talk| talk.hear().contains("not carried it out yet")));
}

const UUID: &str = "GPU-7a11";

/// A stage on a machine with one GPU, and the work on it.
fn with_gpu() -> (Stage, crate::export::Working) {
    let mut stage = Stage::of_one();
    let gpu = crate::gpu::GpuInfo {
        index: 0,
        uuid: UUID.into(),
        name: "A100".into(),
        driver_version: None,
        power_limit: None,
        power_limit_max: None,
    };
    stage.published = stage.published.clone().with_gpus(Roster::new(&[gpu]));
    let working = stage.published.instances().on([UUID.to_owned()].into());
    (stage, working)
}

fn instance(state: &str) -> String {
    format!(r#"{{"cmd":"instances","instances":[{{"name":"code","gpus":["0","9"],"state":"{state}"}}]}}"#)
}

fn until(working: &mut crate::export::Working, wanted: u32) {
    let begun = Instant::now();
    while working.count() != wanted {
        assert!(begun.elapsed() < Duration::from_secs(20), "{wanted}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn instances_hold_what_they_said_last_and_nothing_once_their_client_is_gone() {
    let (stage, mut working) = with_gpu();
    let (_dir, server, _orders, stage) = start_with(stage);
    let mut talk = Talk::with(&server);
    talk.say(&format!("{}\n", instance("working")));
    let answer = talk.hear();
    let known = format!(r#"{{"ok":true,"known":[{{"index":0,"uuid":"{UUID}"}}],"unknown":["9"]}}"#);
    assert_eq!(answer.trim_end(), known);
    assert_eq!(working.count(), 1);
    let told = stage.published.host().instances;
    assert_eq!((told[0].name.as_str(), told[0].state.name()), ("code", "working"));
    // A second client with the same name holds for itself.
    let mut other = Talk::with(&server);
    other.ask(&instance("working"));
    assert_eq!(working.count(), 2);
    talk.ask(&instance("idle"));
    assert_eq!(working.count(), 1);
    assert!(
        matches!(talk.ask(r#"{"cmd":"status"}"#), Answer::State { .. }),
        "the talk is one for all requests"
    );
    talk.ask(&instance("working"));
    drop(other);
    until(&mut working, 1);
    drop(talk);
    until(&mut working, 0);
    assert!(stage.published.host().instances.is_empty());
}

#[test]
fn what_is_wrong_with_instances_ends_the_talk_and_what_it_held() {
    let (stage, mut working) = with_gpu();
    let (_dir, server, _orders, _stage) = start_with(stage);
    for (wrong, why) in [
        (instance("working").replace("code", ""), "1 to 80 bytes"),
        (instance("dancing"), "dancing"),
        (instance("idle").replace("\"0\"", "\"first\""), "names no GPU"),
    ] {
        let mut talk = Talk::with(&server);
        talk.ask(&instance("working"));
        let answer = talk.ask(&wrong);
        assert!(matches!(&answer, Answer::Error { error, .. } if error.contains(why)), "{answer:?}");
        assert_eq!(talk.hear(), "");
        until(&mut working, 0);
    }
}

#[test]
fn clients_that_tell_of_instances_keep_their_places_and_are_few() {
    let (stage, mut working) = with_gpu();
    let (_dir, server, _orders, _stage) = start_with(stage);
    let mut telling: Vec<Talk> = (0..MAX_CLIENTS).map(|_| Talk::with(&server)).collect();
    for talk in &mut telling {
        talk.ask(&instance("working"));
    }
    let one_more = Talk::with(&server).ask(&instance("working"));
    assert!(matches!(&one_more, Answer::Error { error, .. } if error.contains("8 clients")), "{one_more:?}");
    let crowd: Vec<Talk> = (0..CONNECTIONS + 8).map(|_| Talk::with(&server)).collect();
    assert!(matches!(Talk::with(&server).ask(r#"{"cmd":"status"}"#), Answer::State { .. }));
    assert_eq!(working.count(), 8);
    for talk in &mut telling {
        assert!(matches!(talk.ask(&instance("idle")), Answer::Instances { .. }));
    }
    drop(crowd);
}

#[test]
fn file_is_for_owner_and_group_and_goes_with_the_server() {
    let (dir, server, _orders, _stage) = start();
    assert_eq!(server.path().metadata().unwrap().mode() & 0o777, 0o660);
    assert_eq!(sockets(dir.path()), [server.path()]);
    drop(server);
    assert!(sockets(dir.path()).is_empty());
}

#[test]
fn sockets_of_the_dead_are_swept_and_other_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    drop(StdListener::bind(dir.path().join("agft-1.sock")).unwrap());
    drop(StdListener::bind(dir.path().join("other.sock")).unwrap());
    fs::write(dir.path().join("agft-2.sock"), "a file").unwrap();
    let alive = StdListener::bind(dir.path().join("agft-3.sock")).unwrap();
    sweep(dir.path());
    let mut left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["agft-2.sock", "agft-3.sock", "other.sock"]);
    drop(alive);
}

#[test]
fn strangers_are_told_so() {
    let allowed = Allowed { uid: 1000, gid: 990 };
    assert!(allowed.allow(0, 0, &[]) && allowed.allow(1000, 5, &[]));
    assert!(allowed.allow(7, 990, &[]) && allowed.allow(7, 7, &[4, 990]));
    assert!(!allowed.allow(7, 7, &[4]));
    assert!(groups_of(-1).is_empty());
}
