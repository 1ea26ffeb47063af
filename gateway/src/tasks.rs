//! Work that goes on by itself, and that the gateway waits for before it ends.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use tokio::sync::Notify;

/// How much of it there is.
#[derive(Debug, Default)]
pub struct Tasks {
    count: Cell<usize>,
    done: Notify,
}

struct Counted(Rc<Tasks>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.done.notify_waiters();
    }
}

impl Tasks {
    /// Begins something.
    pub fn spawn(self: &Rc<Self>, work: impl Future<Output = ()> + 'static) {
        self.count.set(self.count.get() + 1);
        let counted = Counted(Rc::clone(self));
        tokio::task::spawn_local(async move {
            let _counted = counted;
            work.await;
        });
    }

    /// Waits until there is none.
    pub async fn finished(&self) {
        loop {
            let done = self.done.notified();
            if self.count.get() == 0 {
                return;
            }
            done.await;
        }
    }
}
