package harness

import (
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// InNetns runs f on a thread in a network namespace, by the name that ip(8) gives it. The thread ends with f: sockets stay where they were made.
func InNetns(name string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not for anybody else
		ns, err := os.Open(filepath.Join("/run/netns", name))
		if err != nil {
			result <- err
			return
		}
		defer ns.Close()
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}
