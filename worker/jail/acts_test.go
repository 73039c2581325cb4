package jail_test

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// acts are what the hostile program does with the host's resources. It tells how far it has come on descriptor 3, a line a step.
var acts = map[string]func(){
	"touch memory": func() {
		b, err := unix.Mmap(-1, 0, 1<<30, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		tell("map", err)
		for mib := range 1 << 10 {
			for page := range 256 {
				b[mib<<20+page<<12] = 1
			}
			tell(mib+1, nil)
		}
	},
	"write memory files": func() {
		mib := make([]byte, 1<<20)
		for n := range 1 << 10 {
			fd, err := unix.MemfdCreate("x", 0)
			if err == nil {
				_, err = unix.Write(fd, mib)
			}
			tell(n+1, err)
		}
	},
	"shared memory": func() {
		id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 1<<30, unix.IPC_CREAT|0o600)
		tell("segment", err)
		b, err := unix.SysvShmAttach(id, 0, 0)
		tell("attach", err)
		for mib := range 1 << 10 {
			for page := range 256 {
				b[mib<<20+page<<12] = 1
			}
			tell(mib+1, nil)
		}
	},
	"calls": func() {
		for _, line := range tryCalls() {
			tell(line, nil)
		}
	},
	"fork": func() {
		for n := range 1000 {
			if _, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "1000"}, &syscall.ProcAttr{}); err != nil {
				tell("end", err)
				break
			}
			tell(n+1, nil)
		}
		time.Sleep(time.Hour)
	},
	// All processors there are, for two seconds and more where it is kept from them. It tells the time that it had of them, and the time.
	"burn": func() {
		used := func() time.Duration {
			var r syscall.Rusage
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
				panic(err)
			}
			return time.Duration(r.Utime.Nano() + r.Stime.Nano())
		}
		start, before := time.Now(), used()
		end := start.Add(2 * time.Second)
		for range runtime.NumCPU() + 1 {
			go func() {
				for time.Now().Before(end) { //nolint:revive // that is what it is for
				}
			}()
		}
		time.Sleep(time.Until(end))
		tell(fmt.Sprint((used()-before).Milliseconds(), " ", time.Since(start).Milliseconds()), nil)
		time.Sleep(time.Hour)
	},
	// Children of children, in sessions of their own, deaf to all that can be ignored; they hold descriptor 3. Five tell that they are there.
	"hide": func() {
		signal.Ignore()
		for range 5 {
			cmd := exec.Command("/bin/sh", "-c", `trap '' HUP INT TERM PIPE QUIT USR1 USR2; (setsid sh -c 'trap "" HUP INT TERM; setsid sleep 1000 & echo hidden >&3; sleep 1000' &) & sleep 1000`)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			cmd.ExtraFiles = []*os.File{os.NewFile(3, "held")}
			if err := cmd.Start(); err != nil {
				tell("start", err)
			}
		}
		time.Sleep(time.Hour)
	},
}

func tell(what any, err error) {
	if err != nil {
		what = fmt.Sprint(what, ": ", err)
	}
	if _, err := unix.Write(3, fmt.Appendln(nil, what)); err != nil {
		os.Exit(1)
	}
}
