//! A made-up engine: what another profile looks like.

use super::Profile;

/// It has no histograms, counts the time of its tokens, and can sleep.
pub(super) const QUILL: &str = r#"
name = "Quill"

[recognise]
prefixes = ["quill_"]

[signals]
running = { names = ["active"] }
waiting = { names = ["queued"] }
prompt_tokens = { names = ["tokens_in"] }
generation_tokens = { names = ["tokens_out"] }
itl = { appears = "with_tokens", ratio = { sum = "seconds_out", count = "tokens_out" } }

[[asleep]]
path = "/alive"
key = "asleep"
values = [true]
"#;

/// Its profile.
pub(crate) fn quill() -> &'static Profile {
    super::named("Quill").expect("the made-up engine")
}

/// Its page after this many tokens of 10 ms each.
pub(crate) fn page(tokens: u32, running: u32) -> String {
    let seconds = 0.01 * f64::from(tokens);
    format!(
        "quill_active {running}\nquill_queued 0\nquill_tokens_in 7\nquill_tokens_out{{slot=\"0\"}} {tokens}\n\
         quill_seconds_out{{slot=\"0\"}} {seconds}\nquill_version_info 1\n"
    )
}
