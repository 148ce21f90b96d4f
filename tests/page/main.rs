//! The web page in a real browser, from the real program.
//!
//! Without Chromium and its driver (Debian: `chromium` and `chromium-driver`; `AGFT_BROWSER=1 scripts/setup-browser.sh`
//! installs them) the test says so and is skipped; with `AGFT_BROWSER=1` that is a failure.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod browser;
#[path = "../support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agft::control::Mode;
use agft::export::guard::Hosts;
use agft::export::{Latest, Published, http};
use agft::view::{History, HostState, State};
use browser::Browser;
use nvidia_ml::{GpuConfig, MockConfig};
use serde_json::Value;
use support::daemon::Bench;
use support::{eventually, get};
use tokio::sync::watch;

/// Keys, as WebDriver writes them.
const TAB: &str = "\u{e004}";
const LEFT: &str = "\u{e012}";
const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";

/// Were it read as markup, there would be an element of that id.
const HOSTILE_NAME: &str = "NVIDIA A100 <img id=injected src=x onerror=alert(1)>";

const CHARTS: [&str; 7] = ["clock", "power", "edp", "tpot", "ttft", "requests", "tokens"];

fn browser() -> Option<Browser> {
    let browser = Browser::start();
    if browser.is_none() {
        assert!(
            std::env::var_os("AGFT_BROWSER").is_none(),
            "AGFT_BROWSER is set, and there is no chromedriver"
        );
        eprintln!("skipped: no chromedriver here (Debian: chromium chromium-driver)");
    }
    browser
}

/// Asserts that an expression in the page becomes true.
fn holds(browser: &Browser, expression: &str) {
    let value = eventually(
        || {
            std::thread::sleep(Duration::from_millis(50));
            browser.eval(expression)
        },
        |value| *value == Value::Bool(true),
    );
    assert_eq!(value, Value::Bool(true), "{expression}\n{}", browser.eval("document.body.innerText"));
}

fn text(browser: &Browser, expression: &str) -> String {
    browser.eval(expression).as_str().unwrap_or_default().to_owned()
}

#[test]
fn page_in_a_browser_shows_the_run_and_its_end() {
    let Some(browser) = browser() else { return };
    let hostile = GpuConfig { name: HOSTILE_NAME.into(), ..GpuConfig::a100() };
    let bench = Bench::with(&MockConfig::new(vec![hostile])).set("control.tpot_limit", "0.03");
    let mut daemon = bench.serve(&["--metrics-listen", "127.0.0.1:0"]);
    let address = format!("http://{}/", daemon.page_address());
    browser.resize(1280, 900, false);
    browser.prefer("light");
    browser.open(&address);

    has_everything(&browser);
    moves(&browser);
    keyboard_reaches_charts_and_tables(&browser);
    themes_differ(&browser);
    fits_a_phone(&browser);
    assert_eq!(browser.console(), Vec::<String>::new());

    daemon.stop();
    holds(&browser, "document.getElementById('connection').textContent.startsWith('no connection since')");
    holds(&browser, "document.body.classList.contains('stale')");
    // What was drawn stays; and when an agft is there again, the page is too, with the old curve before a gap.
    let stretches = "document.querySelector('#power path.a').getAttribute('d').split('M').length - 1";
    assert_eq!(browser.eval(stretches), 1);
    let listen = address.trim_start_matches("http://").trim_end_matches('/');
    let mut daemon = bench.serve(&["--metrics-listen", listen]);
    holds(&browser, "document.getElementById('connection').textContent === 'live'");
    holds(&browser, "!document.body.classList.contains('stale')");
    holds(&browser, &format!("{stretches} === 2"));
    daemon.stop();
}

fn has_everything(browser: &Browser) {
    holds(browser, "document.getElementById('connection').textContent === 'live'");
    for chart in CHARTS {
        // Some values, and no coordinate that is not a number.
        holds(
            browser,
            &format!(
                "document.querySelector('#{chart} path.a.shown')?.getAttribute('d').match(/[MLHV]/g).length >= 3"
            ),
        );
        let paths =
            format!("[...document.querySelectorAll('#{chart} path')].map(p => p.getAttribute('d')).join()");
        let paths = text(browser, &paths);
        assert!(!paths.contains("NaN") && !paths.contains("undefined"), "{chart}: {paths}");
        let label =
            text(browser, &format!("document.querySelector('#{chart} .plot').getAttribute('aria-label')"));
        assert!(label.contains(" now ") && label.contains("between"), "{chart}: {label}");
    }
    holds(browser, "document.querySelectorAll('#arms tbody tr').length >= 2");
    holds(browser, "document.querySelectorAll('#arm-map .arm').length >= 2");
    holds(browser, "document.querySelectorAll('#notes li.decision').length >= 2");
    let page = text(browser, "document.body.innerText");
    for wanted in ["NVIDIA A100", "MHz", "Faults", "Limits broken", "Outages", "default clocks"] {
        assert!(page.contains(wanted), "{wanted:?} is not in\n{page}");
    }
    for bad in ["NaN", "undefined", "[object", "Infinity"] {
        assert!(!page.contains(bad), "{bad:?} is in\n{page}");
    }
    // A name from outside is text, whatever it looks like.
    assert!(page.contains(HOSTILE_NAME), "{page}");
    assert_eq!(browser.eval("document.querySelectorAll('#injected').length"), 0);
    holds(browser, "document.querySelectorAll('#tpot .limit').length === 1");
    assert_eq!(browser.eval("document.querySelectorAll('#ttft .limit').length"), 0);
    assert_eq!(browser.eval("document.documentElement.lang"), "en");
    // Nothing was fetched from anywhere but here.
    let foreign =
        "performance.getEntriesByType('resource').filter(r => !r.name.startsWith(location.origin)).length";
    assert_eq!(browser.eval(foreign), 0);
}

fn moves(browser: &Browser) {
    let shown = "document.querySelector('#counts').innerText + document.querySelector('#power path.a').getAttribute('d')";
    let before = text(browser, shown);
    let after = eventually(|| text(browser, shown), |now| *now != before);
    assert_ne!(before, after);
}

fn keyboard_reaches_charts_and_tables(browser: &Browser) {
    browser.eval("document.activeElement.blur()");
    let focused = "document.activeElement.closest('section')?.id + ' ' + (document.activeElement.className || document.activeElement.textContent)";
    let mut reached = Vec::new();
    for _ in 0..60 {
        browser.press(&[TAB]);
        reached.push(text(browser, focused));
    }
    for chart in CHARTS {
        assert!(reached.contains(&format!("{chart} plot")), "{chart} is not among {reached:?}");
        let button = |place: &String| place.starts_with(&format!("{chart} Table"));
        assert!(reached.iter().any(button), "the table of {chart} is not among {reached:?}");
    }
    browser.eval("document.querySelector('#power .plot').focus()");
    browser.press(&[LEFT, LEFT]);
    holds(browser, "document.querySelectorAll('#power .cursor circle').length === 1");
    // The cursor is in all charts, and its values are spoken.
    holds(browser, "document.querySelectorAll('#requests .cursor line').length === 1");
    holds(browser, "/all GPUs .*\\sW/.test(document.getElementById('spoken').textContent)");
    browser.press(&[ESCAPE]);
    holds(browser, "document.querySelectorAll('.cursor circle').length === 0");
    browser.eval("document.querySelector('#power button').focus()");
    browser.press(&[ENTER]);
    holds(browser, "document.querySelectorAll('#power table tbody tr').length >= 1");
    assert_eq!(browser.eval("document.querySelector('#power button').getAttribute('aria-expanded')"), "true");
    browser.press(&[ENTER]);
    holds(browser, "document.querySelector('#power .scroll').hidden");
}

fn themes_differ(browser: &Browser) {
    let colour = "getComputedStyle(document.body).backgroundColor";
    let light = text(browser, colour);
    browser.prefer("dark");
    let dark = text(browser, colour);
    assert_ne!(light, dark);
    // The button: system, light, dark; and the choice outlives a reload.
    browser.eval("document.getElementById('theme').click()");
    assert_eq!(text(browser, colour), light);
    browser.eval("location.reload()");
    holds(browser, "document.getElementById('connection')?.textContent === 'live'");
    assert_eq!(text(browser, colour), light);
    browser.eval("document.getElementById('theme').click()");
    assert_eq!(text(browser, colour), dark);
    browser.eval("document.getElementById('theme').click()");
    browser.prefer("light");
}

fn fits_a_phone(browser: &Browser) {
    browser.resize(360, 740, true);
    holds(browser, "innerWidth === 360");
    holds(browser, "document.documentElement.scrollWidth <= 360");
    // Of what is not in a box that scrolls by itself, nothing reaches past the edge.
    let beyond = "[...document.querySelectorAll('body *')].filter(node => !node.closest('.scroll, svg, .hidden, .skip') \
                  && node.getBoundingClientRect().right > 361).map(node => node.tagName + '#' + node.id + '.' + node.className)";
    assert_eq!(browser.eval(beyond), Value::Array(Vec::new()));
    browser.resize(1280, 900, false);
}

/// Shows two servers made of what a daemon says of its one, beside it; where their states are published.
fn two_servers(daemon: &str) -> (SocketAddr, http::Server, Published, Vec<watch::Sender<Arc<State>>>) {
    let host: HostState = serde_json::from_str(&get(daemon, "/api/state").unwrap()).unwrap();
    let state = host.servers[0].clone();
    let published = Published::new(HostState { servers: Vec::new(), ..host });
    let mut code = State { name: "code <b>".into(), mode: Mode::Paused, ..state.clone() };
    code.gpus[0].index = 1;
    let states = [State { name: "chat".into(), ..state }, code].map(|state| {
        let mut points = History::default();
        points.push(&state);
        let name = state.name.clone();
        let sender = watch::Sender::new(Arc::new(state));
        let history = watch::Sender::new(Arc::new(points)).subscribe();
        published.add(&name, Latest { state: sender.subscribe(), history });
        sender
    });
    let bound = http::Bound::new("test", "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = bound.address();
    (address, bound.serve(published.clone(), Hosts::default()).unwrap(), published, states.into())
}

#[test]
fn page_of_two_servers_lists_them_and_shows_the_one_that_is_chosen() {
    let Some(browser) = browser() else { return };
    let bench = Bench::new();
    let mut daemon = bench.serve(&["--metrics-listen", "127.0.0.1:0"]);
    daemon.wait_for_lessons(3);
    let (address, server, published, _states) = two_servers(&daemon.page_address());
    daemon.stop();
    browser.open(&format!("http://{address}/"));
    let rows = "[...document.querySelectorAll('#servers tbody tr')].map(row => row.innerText)";
    holds(&browser, &format!("{rows}.length === 2"));
    holds(&browser, "document.querySelectorAll('#servers tr.marked').length === 1");
    holds(&browser, "document.getElementById('gpu').textContent.startsWith('chat: ')");
    let list = text(&browser, &format!("{rows}.join()"));
    assert!(list.contains("code <b>") && list.contains("paused"), "{list}");
    holds(&browser, "document.querySelectorAll('#tiles > div').length === 7");
    browser.eval("document.querySelectorAll('#servers button')[1].click()");
    holds(&browser, "document.getElementById('gpu').textContent.startsWith('code <b>: ')");
    holds(&browser, "document.getElementById('mode').textContent === 'paused'");
    holds(
        &browser,
        "document.querySelector('#servers button[aria-pressed=true]').textContent === 'code <b>'",
    );
    // The address says which, also after a reload; and when it goes, the other is shown.
    browser.eval("location.reload()");
    holds(&browser, "document.getElementById('gpu').textContent.startsWith('code <b>: ')");
    fits_a_phone(&browser);
    published.remove("code <b>");
    holds(&browser, "document.getElementById('servers').hidden");
    holds(&browser, "document.getElementById('mode').textContent !== 'paused'");
    holds(&browser, "!location.search.includes('code')");
    drop(server);
}

/// A demo whose page is looked at.
struct Demo {
    child: Child,
    url: String,
}

impl Demo {
    fn start(seconds: u64) -> Self {
        // `AGFT_BIN`: a build that is quick enough not to disturb what it shows.
        let built = || env!("CARGO_BIN_EXE_agft").into();
        let mut child = Command::new(std::env::var_os("AGFT_BIN").unwrap_or_else(built))
            .args(["demo", "--json", "--listen", "127.0.0.1:0", "--seconds", &seconds.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line =
            lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("page: "))).unwrap().unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url: line["page: ".len()..].to_owned() }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn demo_has_the_page_too() {
    let Some(browser) = browser() else { return };
    let demo = Demo::start(60);
    browser.open(&demo.url);
    holds(&browser, "document.getElementById('gpu').textContent.includes('simulated')");
    holds(&browser, "/L/.test(document.querySelector('#power path.a')?.getAttribute('d'))");
    assert_eq!(browser.console(), Vec::<String>::new());
}

#[test]
fn page_without_a_place_for_its_stream_asks_now_and_then() {
    let Some(browser) = browser() else { return };
    let demo = Demo::start(120);
    let address = demo.url.trim_start_matches("http://").trim_end_matches('/');
    let crowd: Vec<TcpStream> = (0..16)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
            let mut first = [0; 12];
            stream.read_exact(&mut first).unwrap();
            assert_eq!(&first, b"HTTP/1.1 200");
            stream
        })
        .collect();
    browser.open(&demo.url);
    let says = "document.getElementById('connection').textContent";
    holds(&browser, &format!("{says} === 'every 5 s: too many pages are open'"));
    holds(&browser, "document.querySelectorAll('#tiles > div').length === 7");
    drop(crowd);
    holds(&browser, &format!("{says} === 'live'"));
}

/// `scripts/screenshots.sh` calls this.
#[test]
#[ignore = "takes minutes: writes the pictures of the documentation"]
fn pictures_for_the_documentation() {
    let into = std::env::var("AGFT_PICTURES").expect("AGFT_PICTURES: the directory for the pictures");
    let after = std::env::var("AGFT_PICTURES_AFTER_S").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let browser = Browser::start().expect("chromedriver (Debian: chromium chromium-driver)");
    let demo = std::env::var("AGFT_PICTURES_OF").is_err().then(|| Demo::start(after + 120));
    let url =
        demo.as_ref().map_or_else(|| std::env::var("AGFT_PICTURES_OF").unwrap(), |demo| demo.url.clone());
    if demo.is_some() {
        std::thread::sleep(Duration::from_secs(after));
    }
    let sizes = [
        ("page-light", "light", 1280, 1560, false),
        ("page-dark", "dark", 1280, 1560, false),
        ("page-phone", "dark", 390, 1500, true),
    ];
    for (name, scheme, width, height, mobile) in sizes {
        browser.resize(width, height, mobile);
        browser.prefer(scheme);
        browser.open(&url);
        holds(&browser, "document.getElementById('connection').textContent === 'live'");
        holds(&browser, "/L/.test(document.querySelector('#power path.a')?.getAttribute('d'))");
        browser.picture(&Path::new(&into).join(format!("{name}.png")));
    }
}
