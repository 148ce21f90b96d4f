//! Shell completions and man pages, made from the command line's own definition.

use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, Exit};

/// Options of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Options of `man-pages`.
#[derive(Debug, Args)]
pub struct ManPagesArgs {
    /// Directory to write them to; it must exist
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Prints the completions of a shell.
pub(crate) fn completions(args: &CompletionsArgs) -> Exit {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "agft", &mut text);
    // A reader that is gone is no failure.
    let _ = io::Write::write_all(&mut io::stdout(), &text);
    Exit::Ok
}

/// Writes `agft.1` and one page for each subcommand.
pub(crate) fn man_pages(args: &ManPagesArgs) -> Exit {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = vec![("agft".to_owned(), command.clone())];
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("agft-{}", sub.get_name());
        pages.push((name.clone(), sub.clone().display_name(name)));
    }
    for (name, page) in pages {
        let path = args.dir.join(format!("{name}.1"));
        let written = std::fs::File::create(&path).and_then(|mut file| Man::new(page).render(&mut file));
        if let Err(error) = written {
            complain!("agft: {}: {error}", path.display());
            return Exit::Failure;
        }
    }
    Exit::Ok
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_man_page_and_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(man_pages(&ManPagesArgs { dir: dir.path().to_owned() }), Exit::Ok);
        let mut text = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "agft", &mut text);
        let completions = String::from_utf8(text).unwrap();
        for sub in Cli::command().get_subcommands() {
            let path = dir.path().join(format!("agft-{}.1", sub.get_name()));
            assert_eq!(path.exists(), !sub.is_hide_set(), "{}", path.display());
            assert!(completions.contains(sub.get_name()), "{}", sub.get_name());
        }
        let page = std::fs::read_to_string(dir.path().join("agft.1")).unwrap();
        assert!(page.contains("data\\-collection\\-mode") && page.contains("Exit codes"), "{page}");
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        assert_eq!(man_pages(&ManPagesArgs { dir: "/nonexistent/agft".into() }), Exit::Failure);
    }
}
