//! What people see of a running `ferry send`: bars on a terminal, plain lines elsewhere. Results go to standard
//! output, everything else to standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::http::printable;

const SENDING: &str = "{prefix:24!} {wide_bar} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4} {msg}";
const WAITING: &str = "{prefix:24!} {spinner} {msg}";

/// The screen, shared by all files.
#[derive(Clone, Debug)]
pub(crate) struct Screen {
    bars: MultiProgress,
    /// People see the results on standard output, so that the facts need not be told as well.
    results_seen: bool,
}

/// One file's place on the screen; cleared when it is dropped.
#[derive(Debug)]
pub(crate) struct Line {
    screen: Screen,
    bar: ProgressBar,
    file: String,
    noted: Option<String>,
}

impl Screen {
    /// The screen that this process has.
    pub(crate) fn new() -> Self {
        let terminal = io::stderr().is_terminal();
        let target = match terminal {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            results_seen: terminal && io::stdout().is_terminal(),
        }
    }

    /// A place for `file`, which has `size` bytes.
    pub(crate) fn line(&self, file: &str, size: u64) -> Line {
        let bar = self.bars.add(ProgressBar::new(size));
        bar.set_style(style(SENDING));
        bar.set_prefix(file.to_owned());
        Line {
            screen: self.clone(),
            bar,
            file: file.to_owned(),
            noted: None,
        }
    }

    /// A result, on standard output; unless both outputs are a terminal also the fact, on standard error.
    ///
    /// # Errors
    /// Standard output takes nothing more.
    pub(crate) fn finished(&self, result: &str, fact: &str) -> io::Result<()> {
        self.bars.suspend(|| writeln!(io::stdout(), "{}", printable(result)))?;
        if !self.results_seen {
            self.tell(fact);
        }
        Ok(())
    }

    /// A line on standard error, above the bars.
    pub(crate) fn tell(&self, text: &str) {
        // If standard error is closed there is nowhere left to say so.
        self.bars
            .suspend(|| drop(writeln!(io::stderr(), "{}", printable(text))));
    }

    /// Takes all bars away.
    pub(crate) fn clear(&self) {
        drop(self.bars.clear()); // bars that stay on a broken terminal harm nobody
    }
}

impl Line {
    /// The server has acknowledged `offset` bytes; speed and time left are counted from here.
    pub(crate) fn resume_at(&mut self, offset: u64) {
        self.bar.set_position(offset);
        self.bar.reset_eta();
        self.bar.set_message("");
    }

    /// The bar itself, for a request that moves it.
    pub(crate) fn bar(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// From now on it is not bytes that are waited for.
    pub(crate) fn wait(&mut self) {
        self.bar.set_style(style(WAITING));
        self.bar.enable_steady_tick(Duration::from_millis(120));
        self.bar.set_message("sent, waiting for its delivery");
        self.noted = None;
    }

    /// What holds the file up, beside the bar only.
    pub(crate) fn hint(&self, text: &str) {
        self.bar.set_message(printable(text));
    }

    /// What holds the file up, as a line of its own if it was not the last one noted.
    pub(crate) fn note(&mut self, text: &str) {
        if self.noted.as_deref() != Some(text) {
            self.screen.tell(&format!("{}: {text}", self.file));
            self.noted = Some(text.to_owned());
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.screen.bars.remove(&self.bar);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates of this file are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        style(SENDING);
        style(WAITING);
    }
}
