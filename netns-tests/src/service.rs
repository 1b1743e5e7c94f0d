//! A daemon as a service: with the manager that starts it, and starts it again.

use nix::sys::signal::Signal;

use crate::host::Host;
use crate::service_manager::ServiceManager;
use crate::underpass::{Config, Daemon, INTERFACE};
use crate::wait;

/// One machine's daemon and its manager.
pub struct Service {
    /// Who starts it.
    pub manager: ServiceManager,
    /// What it is started with the next time.
    pub config: Config,
    /// The daemon that runs, or ran last.
    pub daemon: Daemon,
}

impl Service {
    /// Starts a daemon under a manager of its own and waits until it is ready.
    #[track_caller]
    pub fn start(host: &Host, config: Config) -> Service {
        Service::start_under(ServiceManager::new(host), config)
    }

    /// The same under this manager.
    #[track_caller]
    pub fn start_under(manager: ServiceManager, config: Config) -> Service {
        let daemon = Daemon::launch_under(&manager, &config);
        manager.wait_until_ready(1);
        Service { manager, config, daemon }
    }

    /// As by `kill -9`.
    #[track_caller]
    pub fn kill(&mut self) {
        self.daemon.process().signal(Signal::SIGKILL);
        self.daemon.process().wait_for_exit(wait::PATIENCE);
    }

    /// Starts it with what the manager has kept, and waits until it is ready.
    #[track_caller]
    pub fn start_again(&mut self) {
        let starts = self.manager.ready();
        self.daemon = Daemon::launch_under(&self.manager, &self.config);
        self.manager.wait_until_ready(starts + 1);
    }

    /// The one after the other.
    #[track_caller]
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// The machine.
    pub fn host(&self) -> &Host {
        self.manager.host()
    }

    /// What the kernel calls its interface: another one of the same name has another number.
    #[track_caller]
    pub fn interface_number(&self) -> String {
        let line = self.host().command("ip").args(["-o", "link", "show", INTERFACE]).run();
        line.split(':').next().unwrap_or_default().to_owned()
    }
}
