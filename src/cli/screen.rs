//! The terminal as a screen: taken over and always given back, and the loop that draws on it.

use std::io::{self, IsTerminal, Stdout, Write};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::{cursor, execute, terminal};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::export::protocol::Directed;
use crate::top::{Action, Key, Model, Theme, draw};
use crate::view::{History, HostState};

/// A key is waited for at most this long before news are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Drawn anew this often though nothing came: ages go on.
const DRAW_EVERY: Duration = Duration::from_secs(1);

/// Why there is no screen.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each has its message")]
pub enum ScreenError {
    #[error("standard output is not a terminal; `agft status --watch` writes the state as lines of text")]
    NoTerminal,
    #[error(
        "the terminal (TERM={0}) cannot place text; `agft status --watch` writes the state as lines of text"
    )]
    Dumb(String),
    #[error("the terminal: {0}")]
    Io(#[from] io::Error),
}

/// What the loop is told from outside.
pub enum News {
    /// The latest state.
    Host(Box<HostState>),
    /// The last minutes of a server.
    History(String, History),
    /// Nobody talks to us any more.
    Lost(String),
    /// Something to tell the user.
    Tell(String),
    /// The view has to end: a signal, or what it shows is over.
    End,
}

/// What the environment says about the terminal.
fn theme() -> Theme {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
    Theme { colour: set("NO_COLOR").is_none(), ascii: !is_utf8(&locale) }
}

fn is_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// Can a picture be shown here?
/// Errors: [`ScreenError`] if not.
pub fn possible() -> Result<(), ScreenError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(ScreenError::NoTerminal);
    }
    match std::env::var("TERM") {
        Ok(kind) if kind != "dumb" && !kind.is_empty() => Ok(()),
        other => Err(ScreenError::Dumb(other.unwrap_or_else(|_| "unset".into()))),
    }
}

/// Is the terminal ours now? Whoever sets this to false gives it back, so that it is done once.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Nothing is drawn while the terminal is given back, nor after.
static DRAWING: Mutex<()> = Mutex::new(());

fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // Each on its own: what can be given back is, even if the rest fails.
        let _ = terminal::disable_raw_mode();
        let _ = execute!(io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
        let _ = io::stdout().flush();
    }
}

/// Ends the program with the terminal given back, whatever the view is doing.
pub(super) fn abandon() -> ! {
    give_back();
    std::process::exit(1)
}

/// The terminal while it is ours.
struct Screen {
    /// Never dropped: that would show the cursor, which [`give_back`] does, and panic where nobody is there to see it.
    terminal: ManuallyDrop<Terminal<CrosstermBackend<Stdout>>>,
    _taken: Taken,
}

impl Screen {
    fn take() -> Result<Self, ScreenError> {
        possible()?;
        static HOOK: Once = Once::new();
        // A message of a panic is read on the terminal as it was before, whichever thread it comes from.
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                // Unless it is this thread that draws, the picture is finished first.
                for _ in 0..20 {
                    if DRAWING.try_lock().is_ok() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                give_back();
                before(info);
            }));
        });
        TAKEN.store(true, Ordering::SeqCst);
        let taken = Taken;
        terminal::enable_raw_mode()?;
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        Ok(Self { terminal: ManuallyDrop::new(terminal), _taken: taken })
    }

    fn draw(&mut self, model: &mut Model, theme: Theme) -> io::Result<()> {
        let _drawing = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
        if !TAKEN.load(Ordering::SeqCst) {
            return Err(io::Error::other("given back after a panic"));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64());
        self.terminal.draw(|frame| draw(model, theme, now, frame.area(), frame.buffer_mut()))?;
        Ok(())
    }
}

/// Gives the terminal back when it is dropped, also where taking it over fails half way.
struct Taken;

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

/// What a key asks for; `None` for what is no key.
fn key(event: &Event) -> Option<Key> {
    let Event::Key(pressed) = event else { return None };
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
    Some(match pressed.code {
        KeyCode::Char('c') if control => Key::Interrupt,
        KeyCode::Char('f') if control => Key::PageDown,
        KeyCode::Char('b') if control => Key::PageUp,
        KeyCode::Char(_) if control => Key::Other,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Tab | KeyCode::BackTab | KeyCode::Left | KeyCode::Right => Key::Switch,
        KeyCode::Char('j') | KeyCode::Down => Key::Down,
        KeyCode::Char('k') | KeyCode::Up => Key::Up,
        KeyCode::PageDown | KeyCode::Char(' ') => Key::PageDown,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::Home | KeyCode::Char('g') => Key::Home,
        KeyCode::Char('p') => Key::Order,
        KeyCode::Char('n') => Key::NextServer,
        KeyCode::Char(digit @ '1'..='9') => Key::Server(usize::from(digit as u8 - b'1')),
        KeyCode::Char('y' | 'Y') => Key::Yes,
        KeyCode::Char('?' | 'h') => Key::Help,
        _ => Key::Other,
    })
}

/// What there is at the keyboard's end.
#[derive(Debug, PartialEq)]
enum Look {
    /// Perhaps a key.
    Alive,
    /// Nobody: the window was closed, the connection lost.
    HungUp,
}

/// Waits for a key, at most this long.
fn look(at_most: Duration) -> io::Result<Look> {
    let keyboard = io::stdin();
    let mut watched = [PollFd::new(&keyboard, PollFlags::IN)];
    let span = Timespec { tv_sec: 0, tv_nsec: i64::from(at_most.subsec_nanos()) };
    match poll(&mut watched, Some(&span)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    Ok(if watched[0].revents().intersects(gone) { Look::HungUp } else { Look::Alive })
}

/// Shows the model until the user or the news end it. `order` carries out what the user asks of agft; what comes of it
/// is news.
/// Errors: [`ScreenError`] if there is no terminal, or it fails; it is given back either way.
pub fn show(
    model: &mut Model,
    news: &Receiver<News>,
    mut order: impl FnMut(Directed, &Model),
) -> Result<(), ScreenError> {
    let mut screen = Screen::take()?;
    let theme = theme();
    let mut drawn: Option<Instant> = None;
    loop {
        let mut changed = drawn.is_none_or(|at| at.elapsed() >= DRAW_EVERY);
        loop {
            match news.try_recv() {
                Ok(News::End) | Err(TryRecvError::Disconnected) => return Ok(()),
                Ok(News::Host(host)) => model.host(*host),
                Ok(News::History(server, history)) => model.history(server, history),
                Ok(News::Lost(why)) => model.lost(why),
                Ok(News::Tell(message)) => model.tell(message),
                Err(TryRecvError::Empty) => break,
            }
            changed = true;
        }
        if changed {
            screen.draw(model, theme)?;
            drawn = Some(Instant::now());
        }
        // A terminal that has hung up reads as empty for ever, and crossterm would never return from that: it is asked only
        // while somebody is there. Asked it is after each look, since it is the one that hears of another size.
        if look(LOOK_EVERY)? == Look::HungUp {
            return Ok(());
        }
        if !event::poll(Duration::ZERO)? {
            continue;
        }
        let event = event::read()?;
        // Another size, or back in the foreground: all of it anew.
        drawn = None;
        match key(&event).map_or(Action::None, |key| model.key(key)) {
            Action::None => {}
            Action::Quit => return Ok(()),
            Action::Order(wanted) => order(wanted, model),
        }
    }
}
