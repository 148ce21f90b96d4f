//! The web page in a real browser.
//!
//! Without Chromium and its driver the test says so and is skipped; with `AGFT_BROWSER=1` that is a failure.

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::support::{Serve, wait};

const FILE: &str = "
- name: chat
  command: [sh, -c, 'echo \"<b id=injected>loud</b>\"; exec sleep 1000']
  gpus: 0
- name: <img id=injected src=x onerror=alert(1)>
  enabled: false
  command: sleep 1000
- name: crashing
  command: [sh, -c, exit 3]
  restart: {first_s: 0.1, crash_loop_after: 2}
- name: Meta-Llama-3.1-70B-Instruct-Q4_K_M (both)
  command: sleep 1000
  env: {CUDA_VISIBLE_DEVICES: \"0,1\"}
";

fn holds(browser: &Browser, expression: &str) {
    wait(expression, || (browser.eval(expression) == Value::Bool(true)).then_some(()));
}

#[test]
fn it_lists_instances_shows_logs_and_changes_only_with_the_token() {
    let Some(browser) = Browser::start() else {
        assert!(
            std::env::var_os("AGFT_BROWSER").is_none(),
            "AGFT_BROWSER is set, and there is no chromedriver"
        );
        eprintln!("skipped: no chromedriver here (Debian: chromium chromium-driver)");
        return;
    };
    let serve = Serve::start(&[("a.yaml", FILE)]);
    serve.in_state("chat", "ready");
    browser.open(&format!("http://{}/gui", serve.address));
    holds(&browser, "document.querySelectorAll('#list tr').length === 4");
    let row = |name: &str| {
        format!(
            "[...document.querySelectorAll('#list tr')].find((row) => row.textContent.includes({}))",
            json!(name)
        )
    };
    holds(&browser, &format!("{}.querySelector('.state').textContent === 'ready'", row("chat")));
    holds(&browser, &format!("{}.querySelector('.state').className.includes('bad')", row("crashing")));
    holds(&browser, &format!("{}.querySelector('.state').textContent === 'disabled'", row("onerror=alert")));
    // What is not known is a dash; names and output are text, whatever is in them.
    holds(
        &browser,
        &format!("{}.querySelector('[data-label=\"Tokens/s\"]').textContent === '–'", row("chat")),
    );
    browser.eval(&format!("{}.querySelector('button').click()", row("chat")));
    holds(&browser, "document.getElementById('logs-text').textContent === '<b id=injected>loud</b>'");
    holds(&browser, "document.getElementById('injected') === null");

    // Read-only, until a token is given.
    holds(
        &browser,
        "document.querySelectorAll('td.acts').length === 0 && document.getElementById('reload').hidden",
    );
    let give = |token: &str| {
        browser.eval(&format!(
            "(document.getElementById('token').value = {}, document.querySelector('form button').click())",
            json!(token)
        ));
    };
    let act = |name: &str, what: &str| {
        let button = format!("{}.querySelector('[aria-label^=\"{what}\"]')", row(name));
        holds(&browser, &format!("!!{button}"));
        browser.eval(&format!("{button}.click()"));
    };
    give("not the token, but as long");
    act("chat", "disable");
    holds(&browser, "document.getElementById('said').textContent.includes('needs the token')");
    serve.in_state("chat", "ready");
    give(&serve.token());
    act("chat", "disable");
    serve.in_state("chat", "disabled");
    // The list is looked at again by itself.
    holds(&browser, &format!("{}.querySelector('.state').textContent === 'disabled'", row("chat")));
    act("chat", "enable");
    serve.in_state("chat", "ready");
    holds(&browser, &format!("{}.querySelector('.state').textContent === 'ready'", row("chat")));

    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        for width in [390, 1200] {
            browser.resize(width, 800, width < 500);
            // On a phone what does not fit makes the window wider.
            holds(&browser, &format!("window.innerWidth === {width}"));
            holds(&browser, "document.documentElement.scrollWidth <= window.innerWidth");
            if let Some(dir) = std::env::var_os("AGFT_PICTURES") {
                browser.picture(&std::path::Path::new(&dir).join(format!("serve-{scheme}-{width}.png")));
            }
        }
        let dark = scheme == "dark";
        holds(
            &browser,
            &format!("(parseInt(getComputedStyle(document.body).backgroundColor.slice(4)) < 100) === {dark}"),
        );
    }
    // No script error, nothing that the policy refused. The one refused request is the one with the wrong
    // token.
    let console = browser.console();
    assert!(console.iter().all(|entry| entry.contains("401") || entry.contains("\"DEBUG\"")), "{console:?}");
}
