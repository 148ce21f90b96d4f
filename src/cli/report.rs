//! `agft report` and `agft compare`: what runs did, from their directories.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::Exit;
use crate::report::{Report, ReportError, compare, html, markdown};
use crate::store::file;

/// Form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// One self-contained page with plots.
    Html,
    /// Tables.
    Md,
    /// Everything that was counted.
    Json,
}

/// Options of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The run's directory, for example experiment/agft_...
    #[arg(value_name = "RUN_DIR")]
    run: PathBuf,

    /// Where it goes; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,

    /// Its form; by default that of the file's name, else Markdown
    #[arg(long, value_name = "FORM")]
    format: Option<Form>,
}

/// Options of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The first run's directory
    #[arg(value_name = "RUN_A")]
    first: PathBuf,

    /// The second run's directory; differences are relative to the first
    #[arg(value_name = "RUN_B")]
    second: PathBuf,
}

impl ReportArgs {
    fn form(&self) -> Form {
        self.format.unwrap_or(match self.output.extension().and_then(|extension| extension.to_str()) {
            Some("html" | "htm") => Form::Html,
            Some("json") => Form::Json,
            _ => Form::Md,
        })
    }
}

/// Runs `report`.
pub(crate) fn report(args: &ReportArgs) -> Exit {
    done(write(args))
}

/// Runs `compare`.
pub(crate) fn compare(args: &CompareArgs) -> Exit {
    let text =
        Report::read(&args.first).and_then(|a| Ok(compare::markdown(&a, &Report::read(&args.second)?)));
    done(text.map(|text| {
        // A reader that is gone (`| head`) is no failure.
        super::say::print(&text);
    }))
}

fn done(result: Result<(), ReportError>) -> Exit {
    match result {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain!("agft: {error}");
            Exit::Failure
        }
    }
}

fn write(args: &ReportArgs) -> Result<(), ReportError> {
    let report = Report::read(&args.run)?;
    let text = match args.form() {
        Form::Html => html::html(&report)?,
        Form::Md => markdown::markdown(&report),
        Form::Json => {
            serde_json::to_string_pretty(&report).map_err(|error| ReportError::Text(error.to_string()))?
                + "\n"
        }
    };
    if args.output == Path::new("-") {
        super::say::print(&text);
        return Ok(());
    }
    file::write(&args.output, crate::text::block(&text).as_bytes())?;
    say!("{}", args.output.display());
    Ok(())
}
