//! A terminal with a program on it: its keyboard, and what is to be read on its screen.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};

use crate::process::{Command, Process};

/// A terminal. The program on it is killed when this is dropped.
pub struct Terminal {
    process: Process,
    /// The keyboard's end.
    keyboard: File,
    /// The program's end.
    line: OwnedFd,
    before: Termios,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    /// Starts `command` on a new terminal, which is the program's controlling one.
    #[track_caller]
    pub fn start(command: Command, name: &str, columns: u16, rows: u16) -> Terminal {
        let pty = openpty(&size(columns, rows), None).expect("the system has terminals");
        let before = tcgetattr(&pty.slave).expect("it is a terminal");
        let copy = || pty.slave.try_clone().expect("descriptors can be copied");
        let command = (0..3).fold(command, |command, number| command.descriptor(number, copy()));
        let process = command.env("TERM", "xterm-256color").controlling_terminal().start(name);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(nonzero(rows), nonzero(columns), 0)));
        let keyboard = File::from(pty.master);
        let (output, shown) = (keyboard.try_clone().expect("files can be copied"), screen.clone());
        thread::spawn(move || show(output, &shown));
        Terminal { process, keyboard, line: pty.slave, before, screen }
    }

    /// The program on it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Types.
    #[track_caller]
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("a terminal takes keys");
    }

    /// Gives it another size.
    #[track_caller]
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).set_size(nonzero(rows), nonzero(columns));
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.keyboard, size).expect("a terminal may have any size");
    }

    /// What is to be read, line by line.
    pub fn text(&self) -> String {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).screen().contents()
    }

    /// The line that begins with `word`.
    pub fn line(&self, word: &str) -> Option<String> {
        self.text().lines().find(|line| line.split_whitespace().next() == Some(word)).map(str::to_owned)
    }

    /// Set if it shows what it did before, has its cursor, and treats keys as it did before the program.
    pub fn is_as_before(&self) -> bool {
        let parser = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        let screen = parser.screen();
        let settings = tcgetattr(&self.line).ok();
        !screen.alternate_screen() && !screen.hide_cursor() && settings.as_ref() == Some(&self.before)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the terminal on {} shows:\n{}", self.process.host().name(), self.text());
        }
    }
}

/// Until nobody has the other end any more.
fn show(mut output: File, screen: &Mutex<vt100::Parser>) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = output.read(&mut bytes) {
        screen.lock().unwrap_or_else(PoisonError::into_inner).process(&bytes[..length]);
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn nonzero(size: u16) -> NonZeroU16 {
    NonZeroU16::new(size).expect("a terminal has a size")
}
