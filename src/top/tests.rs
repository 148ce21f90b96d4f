//! The whole picture, drawn on ratatui's test terminal.

use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Rect;

use super::draw::{MIN_HEIGHT, MIN_WIDTH};
use super::model::Pane;
use super::*;
use crate::control::Mode;
use crate::holdout::{Change, SavingsState};
use crate::units::{Clocks, Mhz};
use crate::view::{ArmState, ArmStatus, History, HostState, LearnerState, Load, State, Verdict, testing};

const PLAIN: Theme = Theme { colour: false, ascii: false };

/// What a terminal of this size shows, row by row.
fn screen(model: &mut Model, theme: Theme, now_unix_s: f64, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(model, theme, now_unix_s, frame.area(), frame.buffer_mut())).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(usize::from(width.max(1)));
    rows.map(|row| row.iter().map(Cell::symbol).collect()).collect()
}

fn note(number: u64, at_unix_s: f64, kind: &str, text: &str) -> serde_json::Value {
    serde_json::json!({ "number": number, "at_unix_s": at_unix_s, "kind": kind, "text": text })
}

fn notes<Notes: serde::de::DeserializeOwned>(texts: &[(&str, &str)], at_unix_s: f64) -> Notes {
    let notes = (1..).zip(texts).map(|(number, (kind, text))| note(number, at_unix_s, kind, text)).collect();
    serde_json::from_value(serde_json::Value::Array(notes)).unwrap()
}

/// A state of which everything is known, with pruned arms and news.
fn full() -> State {
    let mut state = State { savings: SavingsState::default(), ..testing::state() };
    state.learner.arms = (0..40)
        .map(|step| {
            let core = 1980 - 45 * step;
            let (status, why) = match core {
                1700.. => (ArmStatus::PrunedCost, Some("costs 12.5 % more than 900 MHz core".into())),
                600..1700 => (ArmStatus::Available, None),
                _ => (ArmStatus::BelowFloor, Some("a latency limit broke: not below 600 MHz".into())),
            };
            let tried = core >= 600;
            ArmState {
                clocks: Clocks::core_only(Mhz(core)),
                status,
                why,
                lessons: if tried { 3 } else { 0 },
                mean_reward: tried.then_some(0.123),
                uncertainty: tried.then_some(0.045),
            }
        })
        .collect();
    state.learner.best = Some(Clocks::core_only(Mhz(900)));
    state.in_force = Some(Clocks::core_only(Mhz(900)));
    state.asked = state.in_force;
    state.notes = notes(
        &[
            ("decision", "900 MHz core: best for this load"),
            ("fault", "driver refused 1980 MHz core: it is not permitted"),
            ("limit", "TPOT limit broken: 61 ms, 50 ms allowed"),
        ],
        state.at_unix_s - 3.0,
    );
    state
}

/// A state of which nothing is known.
fn unknown() -> State {
    let state = testing::state();
    State {
        asked: None,
        in_force: None,
        floor: None,
        limits: None,
        gpus: Vec::new(),
        load: Load::default(),
        round: None,
        learner: LearnerState { best: None, arms: Vec::new(), ..state.learner.clone() },
        counts: crate::view::Counts::default(),
        estimate: crate::view::Estimate::default(),
        savings: SavingsState::default(),
        ..state
    }
}

fn host(state: State) -> HostState {
    let verdict = Verdict::of(&state);
    testing::of(vec![State { verdict, ..state }], None)
}

fn live(mut state: State) -> Model {
    let mut model = Model::default();
    let end = state.at_unix_s;
    for second in (0..90).rev() {
        state.at_unix_s = end - f64::from(second);
        model.host(host(state.clone()));
    }
    model
}

fn now() -> f64 {
    testing::state().at_unix_s + 0.2
}

fn assert_shows(rows: &[String], parts: &[&str]) {
    let text = rows.join("\n");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

/// What has to be there in every size that is drawn on with two rows of charts.
const ESSENTIAL: [&str; 20] = [
    "EXPLOITATION",
    "live, up 60 s",
    "A100",
    "900 MHz",
    "152 W",
    "8 running, 1 waiting",
    "1000 in, 400 out",
    "structured, edp",
    "verdict  saves 25 ",
    " 2.9 %, 5.0 % slower, limits kept but for 1 s (estimate, 50",
    "converged 15 s ago",
    "16 faults, 1 outage, 4 limits broken (1 s), 1 page missed; clock",
    "power 152 W",
    "EDP 82 % of default",
    "TTFT 200 ms",
    "TPOT 20.0 ms",
    "requests 8 run",
    "[arms]",
    "in force, best so far",
    "q quit",
];

#[test]
fn everything_essential_is_there_in_80x24_and_nothing_overlaps() {
    let rows = screen(&mut live(full()), PLAIN, now(), 80, 24);
    assert_shows(&rows, &ESSENTIAL);
    assert_shows(&rows, &["9 below the floor", " >       900        3   +0.123  in force"]);
    assert!(rows.iter().any(|row| row.chars().any(|cell| ('\u{2801}'..='\u{28ff}').contains(&cell))));
}

#[test]
fn the_other_pane_has_the_news_with_what_went_wrong() {
    let mut model = live(full());
    model.key(Key::Switch);
    let rows = screen(&mut model, PLAIN, now(), 80, 24);
    assert_shows(
        &rows,
        &[
            "[news]",
            "3 s ago  decision  900 MHz core: best for this load",
            "fault     driver refused 1980 MHz core: it is not permitted",
            "limit     TPOT limit broken",
        ],
    );
    let text = rows.join("\n");
    assert!(text.find("limit     TPOT") < text.find("decision  900"), "latest first\n{text}");
}

#[test]
fn a_large_terminal_has_both_panes_and_more_charts() {
    let mut model = live(full());
    let rows = screen(&mut model, PLAIN, now(), 160, 50);
    assert_shows(&rows, &ESSENTIAL);
    assert_shows(&rows, &["news", "driver refused 1980 MHz", "tokens/s out", "limit 50 ms (mean)"]);
    assert_shows(&rows, &["7 pruned, costs more"]);
    assert_shows(&rows, &["585-225", "9 below the floor: a latency limit broke"]);
    model.key(Key::PageUp);
    let rows = screen(&mut model, PLAIN, now(), 160, 50);
    assert_shows(&rows, &["1980        3   +0.123  pruned: costs 12.5 % more than 900 MHz core"]);
}

#[test]
fn uncertainty_is_shown_where_there_is_place_for_it() {
    let shown = |width| screen(&mut live(full()), PLAIN, now(), width, 50).concat().contains("+0.123 ±0.045");
    assert!(shown(210) && !shown(80));
}

#[test]
fn what_the_holdout_has_measured_stands_in_place_of_the_estimate() {
    let change = |relative: f64| Change {
        default: 100.0,
        agft: 100.0 * (1.0 + relative),
        difference_half_width: 2.0,
        relative,
        relative_half_width: 0.02,
        cycles: 9,
    };
    let mut state = full();
    state.savings.effect.power_w = Some(change(-0.2));
    state.savings.effect.tpot_s = Some(change(0.03));
    let rows = screen(&mut live(state), PLAIN, now(), 80, 24);
    assert_shows(&rows, &["saves 20 ± 2.0 %, 3.0 % slower, limits kept but for 1 s (measured, 9"]);
    assert!(!rows.concat().contains("estimate"));
}

#[test]
fn several_servers_are_a_list_above_the_one_that_is_shown() {
    let mut model = Model::default();
    model.host(testing::host());
    let rows = screen(&mut model, PLAIN, now(), 80, 24);
    assert!(rows[0].contains("server") && rows[0].contains("limits"), "{}", rows.join("\n"));
    assert!(rows[1].starts_with(" > 1 chat") && rows[1].contains("(measured)"), "{}", rows.join("\n"));
    assert!(rows[2].starts_with("   2 code") && rows[2].contains("PAUSED"), "{}", rows.join("\n"));
    assert!(rows[3].contains("PARKED") && rows[3].contains("18.0 kJ"), "{}", rows.join("\n"));
    assert!(rows[4].contains("(pid 4711)  chat  EXPLOITATION"), "{}", rows.join("\n"));
    assert_shows(&rows, &["[arms]", "power 152 W", "1-9 n server", "live, up 60 s"]);
    model.key(Key::Server(1));
    let rows = screen(&mut model, PLAIN, now(), 80, 24);
    assert!(rows[2].starts_with(" > 2 code"), "{}", rows.join("\n"));
    assert_shows(&rows, &["code  PAUSED: by an operator", "power 303 W"]);
    model.key(Key::Order);
    assert_shows(&screen(&mut model, PLAIN, now(), 80, 24), &["Resume code?"]);
}

#[test]
fn a_long_list_keeps_the_server_shown_in_sight_and_leaves_place_for_it() {
    let mut servers = Vec::new();
    for number in 0..20 {
        servers.push(State { name: format!("s{number}"), ..full() });
    }
    let mut model = Model::default();
    model.host(testing::of(servers, None));
    model.choose(Some("s17".into()));
    for (width, height) in [(80, 24), (MIN_WIDTH, MIN_HEIGHT + 2), (160, 50)] {
        let rows = screen(&mut model, PLAIN, now(), width, height);
        assert!(rows.iter().any(|row| row.starts_with(" >18 s17")), "{}", rows.join("\n"));
        assert_shows(&rows, &["s17  EXPLOITATION", "[arms]", "q quit"]);
    }
    // No place for a list: the one that is shown has all of it.
    let rows = screen(&mut model, PLAIN, now(), MIN_WIDTH, MIN_HEIGHT);
    assert!(rows[0].contains("s17  EXPLOITATION"), "{}", rows.join("\n"));
}

#[test]
fn gpus_without_a_server_are_listed_where_there_is_no_server() {
    let mut model = Model::default();
    model.host(testing::of(Vec::new(), Some(testing::park_state())));
    let rows = screen(&mut model, PLAIN, testing::park_state().at_unix_s, 80, 24);
    assert_shows(&rows, &["agft 1.2.3 (pid 4711)", "live, up 60 s", "PARKED", "18.0 kJ saved", "p pause"]);
    model.key(Key::Order);
    assert_shows(&screen(&mut model, PLAIN, now(), 80, 24), &["Pause agft"]);
}

#[test]
fn too_small_a_terminal_is_told_what_is_needed() {
    let text = screen(&mut live(full()), PLAIN, now(), 40, 10).join(" ");
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words.join(" "), format!("agft top needs at least {MIN_WIDTH}x{MIN_HEIGHT}, this is 40x10"));
}

#[test]
fn the_smallest_terminal_still_has_charts_arms_and_keys() {
    let rows = screen(&mut live(full()), PLAIN, now(), MIN_WIDTH, MIN_HEIGHT);
    assert_shows(&rows, &["EXPLOITATION", "power 152 W", "[arms]", "in force", "q quit"]);
}

#[test]
fn without_data_it_says_whom_it_waits_for() {
    let mut model = Model::default();
    assert_shows(&screen(&mut model, PLAIN, now(), 80, 24), &["waiting for what agft says", "q quit"]);
    model.lost("no agft runs here (no socket answers in /run/agft)".into());
    let rows = screen(&mut model, PLAIN, now(), 80, 24);
    assert_shows(&rows, &["no agft runs here (no socket answers in /run/agft); trying again every second"]);
}

#[test]
fn what_is_unknown_is_called_so_and_never_zero() {
    let rows = screen(&mut live(unknown()), PLAIN, now(), 80, 24);
    assert_shows(
        &rows,
        &[
            "driver default in force",
            "? running, ? waiting; tokens/s ? in, ? out; KV cache ? %",
            "savings not known yet, no limits",
            "none; no outage; no limits",
            "TTFT ? ms, no limit",
            "nothing known yet",
            "0 of 0 may be chosen",
        ],
    );
}

#[test]
fn an_agft_that_has_ended_leaves_its_last_picture_and_the_word_that_it_is_old() {
    let mut model = live(full());
    model.lost("agft has ended".into());
    let rows = screen(&mut model, PLAIN, now() + 30.0, 80, 24);
    assert_shows(&rows, &["NOT LIVE, 30 s old", "agft has ended; trying again every second", "900 MHz"]);
    model.host(host(full()));
    assert_shows(&screen(&mut model, PLAIN, now(), 80, 24), &["live, up 60 s"]);
}

#[test]
fn a_picture_that_gets_old_under_an_open_talk_is_not_called_live() {
    let rows = screen(&mut live(full()), PLAIN, now() + 20.0, 80, 24);
    assert_shows(&rows, &["NOT LIVE, 20 s old"]);
}

#[test]
fn pause_asks_back_and_an_answer_is_told() {
    let mut model = live(full());
    model.key(Key::Order);
    assert_shows(&screen(&mut model, PLAIN, now(), 80, 24), &["Pause agft", "y: yes, any other key: no"]);
    model.key(Key::Other);
    assert_shows(&screen(&mut model, PLAIN, now(), 80, 24), &["nothing was asked of agft"]);
    model.host(host(State { mode: Mode::Paused, ..full() }));
    model.key(Key::Order);
    assert_shows(&screen(&mut model, PLAIN, now(), 80, 24), &["PAUSED", "Resume agft?"]);
}

#[test]
fn help_says_what_the_keys_do_in_80_columns() {
    let mut model = live(full());
    model.key(Key::Help);
    let rows = screen(&mut model, PLAIN, now(), 80, 24);
    assert_shows(&rows, &["Tab, arrows", "PgUp PgDn", "pause agft", "> in force"]);
    let help = rows.iter().position(|row| row.contains("help ?")).unwrap();
    assert!(!rows[help..].concat().contains('…'), "{}", rows.join("\n"));
}

#[test]
fn eight_gpus_share_a_line_where_there_is_no_place_for_eight() {
    let mut state = full();
    state.gpus = (0..8)
        .map(|index| {
            let mut gpu = state.gpus[0].clone();
            (gpu.index, gpu.capped) = (index, Some(index == 7));
            gpu.core_clock = Some(Mhz(900 + 15 * index));
            gpu
        })
        .collect();
    let rows = screen(&mut live(state.clone()), PLAIN, now(), 80, 24);
    assert_shows(
        &rows,
        &["GPUs     8: 900 to 1005 MHz, 1212 W, hottest 50 °C, 72.0 kJ, 1 HELD LOW", "[arms]"],
    );
    let rows = screen(&mut live(state), PLAIN, now(), 100, 50);
    assert_shows(&rows, &["7 \"A100\"", "1005 MHz", "HELD LOW by power or heat"]);
}

/// Names and texts as long and as foreign as they can be, and one that would move the cursor.
fn foreign() -> State {
    let long = "電力 GPU™ 😀 \u{1b}[2J\u{7}مرحبا e\u{301} ".repeat(40);
    let mut state = full();
    state.policy.clone_from(&long);
    state.gpus[0].name.clone_from(&long);
    state.learner.handed_over = Some(long.clone());
    state.learner.arms[3].why = Some(long.clone());
    state.notes = notes(&[("fault", &long), ("decision", &"x".repeat(3000))], state.at_unix_s);
    state.counts.faults.insert(long.clone(), 3);
    state
}

#[test]
fn long_and_foreign_texts_are_cut_with_a_mark_and_cannot_steer_the_terminal() {
    for (width, height) in [(80, 24), (160, 50), (61, 17)] {
        for pane in [Pane::Arms, Pane::News] {
            let mut model = live(foreign());
            model.pane = pane;
            let rows = screen(&mut model, PLAIN, now(), width, height);
            assert!(!rows.concat().contains(char::is_control));
            assert!(rows.concat().contains('…'), "{}", rows.join("\n"));
            for row in &rows {
                // Behind a wide character the buffer has a blank that no terminal shows.
                let blanks = row.chars().filter(|letter| text::width(&letter.to_string()) > 1).count();
                assert!(text::width(row) <= usize::from(width) + blanks, "{row}");
            }
        }
    }
}

#[test]
fn without_utf8_every_cell_is_ascii_and_curves_are_still_curves() {
    let theme = Theme { colour: false, ascii: true };
    for state in [full(), foreign(), unknown()] {
        let rows = screen(&mut live(state), theme, now(), 160, 50);
        assert!(rows.iter().all(|row| row.is_ascii()), "{}", rows.join("\n"));
    }
    let rows = screen(&mut live(full()), theme, now(), 80, 24);
    assert_shows(&rows, &ESSENTIAL);
    let power = rows.iter().position(|row| row.contains("power")).unwrap();
    let dots = rows[power + 1..power + 4].concat().chars().filter(|cell| ".':".contains(*cell)).count();
    assert!(dots > 20, "{}", rows.join("\n"));
}

#[test]
fn without_colour_the_words_are_the_same_and_no_cell_is_coloured() {
    let cells = |colour| {
        let mut model = live(State { mode: Mode::SloGuard, ..full() });
        let mut buffer = Buffer::empty(Rect::new(0, 0, 160, 50));
        draw(&mut model, Theme { colour, ascii: false }, now(), buffer.area, &mut buffer);
        buffer.content
    };
    let symbols = |cells: &[Cell]| cells.iter().map(|cell| cell.symbol().to_owned()).collect::<Vec<_>>();
    let (plain, coloured) = (cells(false), cells(true));
    assert_eq!(symbols(&plain), symbols(&coloured));
    let reset = ratatui::style::Color::Reset;
    assert!(plain.iter().all(|cell| (cell.fg, cell.bg) == (reset, reset)));
    assert!(coloured.iter().any(|cell| cell.fg != reset));
}

fn number() -> impl Strategy<Value = Option<f64>> {
    prop::option::of(prop_oneof![prop::num::f64::ANY, -1e3..1e4_f64])
}

prop_compose! {
    /// A state with any numbers and texts in it, some of which no daemon would send.
    fn any_state()(
        numbers in prop::collection::vec(number(), 16),
        texts in prop::collection::vec("\\PC{0,60}", 4),
        mode in prop::sample::select(Mode::ALL.to_vec()),
        gpus in 0_usize..12,
        arms in prop::collection::vec((0..4000_u32, prop::option::of(0..9000_u32), 0..ArmStatus::ALL.len(), 0..3_u64), 0..40),
        at in prop_oneof![prop::num::f64::ANY, 0.0..3000.0_f64],
        chosen in any::<prop::sample::Index>(),
    ) -> State {
        let mut state = full();
        state.mode = mode;
        state.at_unix_s = at;
        let gpu = state.gpus[0].clone();
        state.gpus = vec![gpu; gpus];
        for (gpu, number) in state.gpus.iter_mut().zip(numbers.iter().cycle()) {
            (gpu.power_w, gpu.temperature_c, gpu.utilization) = (*number, numbers[1], numbers[2]);
            gpu.energy_j = numbers[3];
            gpu.name.clone_from(&texts[0]);
        }
        state.load = Load {
            running: numbers[4],
            waiting: numbers[5],
            kv_usage: numbers[6],
            prefill_tps: numbers[7],
            decode_tps: numbers[8],
            ttft_s: numbers[9],
            tpot_s: numbers[10],
        };
        let round = state.round.as_mut().unwrap();
        (round.edp_js, round.default_edp_js) = (numbers[11], numbers[12]);
        state.estimate.energy_j = numbers[13].unwrap_or(0.0);
        state.estimate.default_energy_j = numbers[14].unwrap_or(0.0);
        state.estimate.compared_s = numbers[15].unwrap_or(0.0);
        state.policy.clone_from(&texts[1]);
        state.notes = notes(&[("fault", &texts[2]), ("info", &texts[3])], 0.0);
        state.learner.arms = arms
            .into_iter()
            .map(|(core, memory, status, lessons)| ArmState {
                clocks: Clocks { core: Mhz(core), memory: memory.map(Mhz) },
                status: ArmStatus::ALL[status],
                why: (lessons == 0).then(|| texts[2].clone()),
                lessons,
                mean_reward: numbers[0],
                uncertainty: numbers[1],
            })
            .collect();
        if !state.learner.arms.is_empty() {
            state.in_force = Some(chosen.get(&state.learner.arms).clocks);
        }
        state
    }
}

fn any_key() -> impl Strategy<Value = Key> {
    use Key::{Down, Help, Home, NextServer, Order, Other, PageDown, PageUp, Quit, Server, Switch, Up, Yes};
    let more =
        vec![Down, Help, Home, NextServer, Order, Other, PageDown, PageUp, Quit, Server(1), Switch, Up, Yes];
    prop::sample::select(more)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_state_key_or_size_panics_or_draws_outside(
        states in prop::collection::vec(any_state(), 0..6),
        keys in prop::collection::vec(any_key(), 0..12),
        (x, y, width, height) in (0_u16..4, 0_u16..4, 1_u16..=300, 1_u16..=100),
        now_unix_s in prop::num::f64::ANY,
        (colour, ascii, lost, several) in any::<(bool, bool, bool, bool)>(),
    ) {
        let mut model = Model::default();
        let park = several.then(testing::park_state);
        for (number, state) in states.iter().enumerate() {
            let first = State { name: "first".into(), ..state.clone() };
            let mut servers = vec![first];
            if several {
                servers.extend(states.iter().cloned());
            }
            let only_parked = several && number == 1;
            model.host(testing::of(if only_parked { Vec::new() } else { servers }, park.clone()));
        }
        if lost {
            model.lost("gone".into());
        }
        // A margin around the area that nothing may be drawn on.
        let whole = Rect::new(0, 0, x + width + 2, y + height + 2);
        let area = Rect::new(x, y, width, height);
        let mut buffer = Buffer::filled(whole, Cell::new("#"));
        for key in keys.into_iter().map(Some).chain([None]) {
            area.positions().for_each(|place| buffer[place].reset());
            draw(&mut model, Theme { colour, ascii }, now_unix_s, area, &mut buffer);
            for place in whole.positions().filter(|place| !area.contains(*place)) {
                prop_assert_eq!(buffer[place].symbol(), "#");
                prop_assert_eq!(buffer[place].style(), Cell::new("#").style());
            }
            key.map(|key| model.key(key));
        }
    }
}

#[test]
fn ten_minutes_of_history_are_drawn_to_the_left_edge() {
    let mut history = History::default();
    let mut state = full();
    let end = state.at_unix_s;
    for second in (0..600).rev() {
        state.at_unix_s = end - f64::from(second);
        history.push(&state);
    }
    let mut model = Model::default();
    model.host(host(full()));
    model.history("chat".into(), history);
    let rows = screen(&mut model, PLAIN, now(), 80, 24);
    assert_shows(&rows, &["charts: last 10 min"]);
    let power = rows.iter().position(|row| row.contains("power")).unwrap();
    let dotted =
        |row: &String| row.chars().skip(6).take(19).all(|cell| ('\u{2801}'..='\u{28ff}').contains(&cell));
    assert!(rows[power + 1..power + 4].iter().any(dotted), "{}", rows.join("\n"));
}
