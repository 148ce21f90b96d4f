//! Which inference engine a page is of, and how to read it: one profile per engine, a file in `engines/`.
//!
//! A new engine is a file there and its line in `FILES`, or a file of the user's own. `docs/engines.md` has every key.
//! What all engines share (the text of a page, how series combine, windows, health, HTTP) is in [`crate::metrics`].

mod asleep;
mod dir;
mod file;
mod profile;
mod recognise;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::{LazyLock, OnceLock};

use crate::metrics::Signal;
use crate::metrics::page::Text;

pub use dir::{load_dir, load_file};
pub use file::{Fault, ProfileError};
pub use profile::Profile;
pub(crate) use profile::USUAL_PATH;

/// The files of the built-in profiles. vLLM is the last one: its names are recognised behind foreign prefixes too, which
/// may be another engine's own.
const FILES: &[(&str, &str)] = &[
    ("engines/sglang.toml", include_str!("../../engines/sglang.toml")),
    ("engines/llama.cpp.toml", include_str!("../../engines/llama.cpp.toml")),
    ("engines/tensorrt-llm.toml", include_str!("../../engines/tensorrt-llm.toml")),
    ("engines/triton.toml", include_str!("../../engines/triton.toml")),
    ("engines/lmdeploy.toml", include_str!("../../engines/lmdeploy.toml")),
    ("engines/tgi.toml", include_str!("../../engines/tgi.toml")),
    ("engines/dynamo.toml", include_str!("../../engines/dynamo.toml")),
    #[cfg(test)]
    ("quill", testing::QUILL),
    ("engines/vllm.toml", include_str!("../../engines/vllm.toml")),
];

/// The engine whose names an engine that is not known is taken to have.
const USUAL: &str = "vLLM";

/// The user's own profiles. They are set once, at start, and live as long as the process.
static OWN: OnceLock<Vec<&'static Profile>> = OnceLock::new();

/// Every profile in force: the user's own first, then the built-in ones that no own one replaces.
static ALL: LazyLock<Vec<&'static Profile>> =
    LazyLock::new(|| with_built_in(OWN.get().cloned().unwrap_or_default()));

/// Takes the user's own profiles beside the built-in ones, or in place of those with the same names. Only the first call
/// counts, and only before the first page is read; it says whether it did.
pub fn take(own: Vec<Profile>) -> bool {
    let own = own.into_iter().map(|profile| &*Box::leak(Box::new(profile))).collect();
    OWN.set(own).is_ok()
}

fn with_built_in(mut own: Vec<&'static Profile>) -> Vec<&'static Profile> {
    for profile in built_in() {
        if !own.iter().any(|own| own.name().eq_ignore_ascii_case(profile.name())) {
            own.push(profile);
        }
    }
    own
}

/// The built-in profiles. A file with an error would be missing; a test reads each.
pub fn built_in() -> impl Iterator<Item = &'static Profile> {
    static BUILT_IN: LazyLock<Vec<Profile>> =
        LazyLock::new(|| FILES.iter().filter_map(|(file, text)| Profile::parse(text, file).ok()).collect());
    BUILT_IN.iter()
}

/// Every engine that agft knows. The first that recognises a page reads it.
pub fn all() -> impl Iterator<Item = &'static Profile> + Clone {
    ALL.iter().copied()
}

/// The engine with this name, in upper or lower case.
#[must_use]
pub fn named(name: &str) -> Option<&'static Profile> {
    all().find(|engine| engine.name().eq_ignore_ascii_case(name))
}

/// The engine where none is said: vLLM.
#[must_use]
pub fn usual() -> &'static Profile {
    named(USUAL).unwrap_or(Profile::none())
}

/// The first of these engines whose page this is, and the prefix of its metrics there.
pub(crate) fn find(
    among: impl IntoIterator<Item = &'static Profile>,
    page: Text<'_>,
) -> Option<(&'static Profile, &str)> {
    among.into_iter().find_map(|engine| engine.prefix(page).map(|prefix| (engine, prefix)))
}

/// The engine whose names most of a page's are like, and what is missing there, as a sentence for the message that it is
/// no engine's page; empty where less than two signals are alike.
pub(crate) fn alike(page: Text<'_>) -> String {
    let each = all().map(|engine| (engine, engine.alike(page)));
    // Of equal ones the first.
    let most = each.reduce(|most, next| if next.1.len() > most.1.len() { next } else { most });
    let Some((engine, alike)) = most.filter(|(_, alike)| alike.len() >= 2) else { return String::new() };
    let names = |signals: &mut dyn Iterator<Item = Signal>| {
        signals.map(|signal| signal.to_string()).collect::<Vec<_>>().join(", ")
    };
    let due = engine.table().iter().filter(|row| row.appears != table::Appears::Perhaps);
    let missing = names(&mut due.map(|row| row.signal).filter(|signal| !alike.contains(signal)));
    let missing = if missing.is_empty() { String::new() } else { format!("; missing: {missing}") };
    let prefix = engine.prefixes().next().unwrap_or_default();
    format!(
        " It looks most like {} behind another prefix than {prefix}: {}{missing}. A profile of its own can be given \
         (agft check --engine-file)",
        engine.name(),
        names(&mut alike.iter().copied()),
    )
}

/// What a page of these engines would have shown, for the message that there is none.
pub(crate) fn looked_for(engines: impl IntoIterator<Item = &'static Profile>) -> String {
    let look = |engine: &'static Profile| {
        let prefix = engine.prefixes().next().unwrap_or_default();
        let remedy =
            if engine.remedy().is_empty() { String::new() } else { format!("; {}", engine.remedy()) };
        format!("{} ({prefix}...{remedy})", engine.name())
    };
    engines.into_iter().map(look).collect::<Vec<_>>().join(", ")
}

/// Pages that are not at the usual path: engine and path, for the message that something else is there.
pub(crate) fn other_paths() -> Vec<(&'static str, &'static str)> {
    let other = |engine: &&'static Profile| engine.path() != USUAL_PATH;
    all().filter(other).map(|engine| (engine.name(), engine.path())).collect()
}
