package kvmhost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/test/kvmhost/steps"
)

// machine is the emulated host.
type machine struct {
	img       Image
	initrd    string
	payload   *os.File // the disk; it needs no name any more
	vcpus     int
	memoryMiB int
	processor int // of this machine's, the one that it keeps to if it has one itself: counted from the last, over and over
	// console takes what the host's kernel and init print.
	console io.Writer
	// booted is how long the host may take to its first event, and grace how long it may take to tell that a step has ended whose time is over.
	booted, grace time.Duration
}

// cmdline is the kernel's: a panic ends the machine, and only warnings are printed, because a serial line is slow. No clock is watched by
// another: all are the emulator's, and what makes them differ is that it waited for a processor (docs/kvm-host.md).
const cmdline = "console=ttyS0 loglevel=5 panic=-1 no_timer_check random.trust_cpu=on tsc=nowatchdog"

// run boots the host, gives what it tells to emit, and returns when it has ended. Without an event of kind Done that is an error.
func (m machine) run(ctx context.Context, plan steps.Plan, emit func(steps.Event)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	events, eventsEnd, err := socketPair()
	if err != nil {
		return err
	}
	defer events.Close()
	defer eventsEnd.Close()
	console, consoleEnd, err := socketPair()
	if err != nil {
		return err
	}
	defer console.Close()
	defer consoleEnd.Close()

	args := append(m.img.Emulator(),
		"-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,svm=on,npt=on", "-smp", strconv.Itoa(m.vcpus), "-m", strconv.Itoa(m.memoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", m.img.Kernel(), "-initrd", m.initrd, "-append", cmdline,
		"-drive", "if=none,id=root,format=raw,snapshot=on,cache=unsafe,file="+m.img.Disk(), "-device", "virtio-blk-pci,drive=root,addr=4",
		"-drive", "if=none,id=payload,format=raw,cache=unsafe,file=/proc/self/fd/5", "-device", "virtio-blk-pci,drive=payload,addr=5",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=events,fd=3,server=off", "-device", "virtserialport,chardev=events,name=paddock.events",
		"-chardev", "socket,id=console,fd=4,server=off", "-serial", "chardev:console",
	)
	cmd := command(ctx, args[0], args[1:]...)
	cmd.ExtraFiles = []*os.File{eventsEnd, consoleEnd, m.payload}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	runtime.LockOSThread() // as in finish
	defer runtime.UnlockOSThread()
	start := cmd.Start
	if m.vcpus == 1 { // then no two threads of the emulator run at once: docs/kvm-host.md
		start = func() error { return onOneProcessor(m.processor, cmd.Start) }
	}
	if err := start(); err != nil {
		return fmt.Errorf("start the host: %w", err)
	}
	eventsEnd.Close()
	consoleEnd.Close()

	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(m.console, console) }) // to the end of the machine
	done := false
	w := newWatch(m, plan, cancel)
	wg.Go(func() {
		for d := json.NewDecoder(events); ; {
			var e steps.Event
			if err := d.Decode(&e); err != nil {
				if !errors.Is(err, io.EOF) {
					cancel(fmt.Errorf("read what the host tells: %w", err))
				}
				return
			}
			w.saw(e)
			done = done || e.Kind == steps.Done
			emit(e)
		}
	})
	err = cmd.Wait()
	wg.Wait()
	w.stop()
	switch cause := context.Cause(ctx); {
	case cause != nil:
		return cause
	case err != nil:
		return fmt.Errorf("the host: %w: %s", err, lastLines(said.Bytes(), 10))
	case !done:
		return errors.New("the host ended before its work was done")
	}
	return nil
}

// watch ends a machine that does not tell in time what it should.
type watch struct {
	limits map[string]time.Duration
	grace  time.Duration
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

func newWatch(m machine, plan steps.Plan, cancel context.CancelCauseFunc) *watch {
	w := &watch{limits: map[string]time.Duration{}, grace: m.grace, cancel: cancel}
	for _, s := range plan.Steps {
		w.limits[s.Name] = s.Timeout + m.grace
	}
	w.within(m.booted, "to boot")
	return w
}

func (w *watch) within(d time.Duration, what string) {
	w.stop()
	w.timer = time.AfterFunc(d, func() { w.cancel(fmt.Errorf("the host took more than %v %s", d, what)) })
}

func (w *watch) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// saw sets the time for what comes after an event.
func (w *watch) saw(e steps.Event) {
	switch e.Kind {
	case steps.Begin:
		w.within(w.limits[e.Step], "for "+e.Step)
	case steps.Ready, steps.End, steps.File:
		w.within(w.grace, "to go on")
	case steps.Done:
		w.within(w.grace, "to end")
	}
}

func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs"), nil
}
