package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/paddockvm/paddock/vmm/hostfile"
)

// backupName is the job's, and its target's, in QEMU.
const backupName = "checkpoint"

// backup is a job of QEMU's that copies the scratch disk as it was when the job began (docs/interop/live-block-operations.rst in QEMU's
// source). What the guest writes meanwhile waits for the old content to be copied: the copy is a file beside the disk's own, so that
// a full file system is no new danger to it.
type backup struct {
	m    *machine
	file *os.File // the copy
	// node and running say that the target, and the job, may be there: whoever gives up waiting for an answer does not know.
	node, running bool
}

// prepareBackup opens the target, while the machine runs; nil for a machine without a scratch disk.
func (m *machine) prepareBackup(ctx context.Context) (_ *backup, err error) {
	if m.boot.Scratch == "" {
		return nil, nil
	}
	if m.uncleared != nil {
		if err := m.uncleared.clear(ctx); err != nil {
			return nil, fmt.Errorf("what the last checkpoint left: %w", err)
		}
	}
	b := &backup{m: m}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close(ctx))
		}
	}()
	info, err := os.Stat(m.boot.Scratch) // the disk is a copy of it
	if err != nil {
		return nil, err
	}
	if b.file, err = hostfile.Unnamed(m.d.cfg.RunDir); err != nil {
		return nil, err
	}
	if err := b.file.Truncate(info.Size()); err != nil {
		return nil, err
	}
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	if err := m.lend(ctx, diskSet, b.file); err != nil {
		return nil, err
	}
	err = m.qmp.execute(ctx, "blockdev-add", map[string]any{
		"driver": "file", "node-name": backupName, "filename": diskSet.path(), "locking": "off", "discard": "unmap", "detect-zeroes": "unmap",
		"cache": map[string]bool{"no-flush": true},
	}, nil)
	b.node = !refused(err)
	return b, err
}

// start begins the job: the copy is of this moment. It begins slowly, at a byte a second, until wait: QEMU would else copy, and look for holes,
// before it obeys again, and the machine stand still for 20 ms more.
func (b *backup) start(ctx context.Context) error {
	select {
	case <-b.m.backedUp: // the end of a job before, for which nobody waited
	default:
	}
	err := b.m.qmp.execute(ctx, "blockdev-backup", map[string]any{
		"job-id": backupName, "device": scratchNode, "target": backupName, "sync": "full", "auto-dismiss": false, "speed": 1,
	}, nil)
	b.running = !refused(err)
	return err
}

// wait waits for the job's end. How long that takes is the disk's business.
func (b *backup) wait(ctx context.Context) error {
	if err := b.hurry(ctx); err != nil {
		return err
	}
	return b.finish(ctx)
}

// finish waits for a job that is about to end, and has QEMU forget it.
func (b *backup) finish(ctx context.Context) error {
	if err := b.concluded(ctx); err != nil {
		return err
	}
	ctx, cancel := b.m.d.step(ctx)
	defer cancel()
	var jobs []struct {
		ID    string `json:"id"`
		Error string `json:"error"`
	}
	if err := b.m.qmp.execute(ctx, "query-jobs", nil, &jobs); err != nil {
		return err
	}
	err := b.m.qmp.execute(ctx, "job-dismiss", map[string]string{"id": backupName}, nil)
	b.running = err != nil
	for _, j := range jobs {
		if j.ID == backupName && j.Error != "" {
			return errors.Join(fmt.Errorf("copy the scratch disk: %s", j.Error), err)
		}
	}
	return err
}

// hurry lets the job copy as fast as it can. One that is over already refuses, and has told of its end before.
func (b *backup) hurry(ctx context.Context) error {
	ctx, cancel := b.m.d.step(ctx)
	defer cancel()
	err := b.m.qmp.execute(ctx, "block-job-set-speed", map[string]any{"device": backupName, "speed": 0}, nil)
	if refused(err) && len(b.m.backedUp) > 0 {
		return nil
	}
	return err
}

func (b *backup) concluded(ctx context.Context) error {
	select {
	case <-b.m.backedUp:
		return nil
	case <-b.m.done:
		return errors.New("the machine is over")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// close ends the job where it still runs, and takes what was lent back. What QEMU has not done in time is left to the next checkpoint.
func (b *backup) close(ctx context.Context) error {
	defer b.file.Close()
	err := b.clear(context.WithoutCancel(ctx))
	b.m.takeBack(ctx, diskSet)
	select {
	case <-b.m.done: // nothing is left to be cleared away
		return nil
	default:
		return err
	}
}

// clear has QEMU forget the job and its target.
func (b *backup) clear(ctx context.Context) error {
	ctx, cancel := b.m.d.step(ctx)
	defer cancel()
	b.m.uncleared = b
	if b.running {
		if err := b.end(ctx); err != nil {
			return err
		}
	}
	if b.node {
		err := b.m.qmp.execute(ctx, "blockdev-del", map[string]string{"node-name": backupName}, nil)
		if b.node = err != nil && !refused(err); err != nil { // without the job nothing keeps the target: there is none
			return err
		}
	}
	b.m.uncleared = nil
	return nil
}

// end ends a job that may run, may have ended, or may never have begun.
func (b *backup) end(ctx context.Context) error {
	err := b.m.qmp.execute(ctx, "block-job-cancel", map[string]any{"device": backupName, "force": true}, nil)
	switch {
	case err == nil:
		_ = b.finish(ctx) // its error is that it was cancelled
		if !b.running {
			return nil
		}
		return errors.Join(errors.New("the copy of the scratch disk does not end"), context.Cause(ctx))
	case refused(err): // it is over, or there is none
		err = b.m.qmp.execute(ctx, "job-dismiss", map[string]string{"id": backupName}, nil)
		if b.running = err != nil && !refused(err); b.running {
			return err
		}
		return nil
	}
	return err
}

// refused tells that QEMU has said no: what it was asked for has not happened.
func refused(err error) bool {
	_, ok := errors.AsType[*qmpError](err)
	return ok
}

// fdset names a descriptor of ours that QEMU opens by a path. They are numbered from here, not by QEMU, which would not be heard by
// whoever has given up waiting for its answer.
type fdset int

const (
	stateSet fdset = 1000 + iota
	diskSet
)

func (f fdset) path() string { return "/dev/fdset/" + strconv.Itoa(int(f)) }

// lend gives QEMU a descriptor. It opens it with the access that the descriptor has, no other.
func (m *machine) lend(ctx context.Context, f fdset, file *os.File) error {
	return m.qmp.execute(ctx, "add-fd", map[string]int{"fdset-id": int(f)}, nil, file)
}

// takeBack has QEMU forget a descriptor, once it has closed what it opened by it. There may be none, or no QEMU.
func (m *machine) takeBack(ctx context.Context, f fdset) {
	ctx, cancel := m.d.step(context.WithoutCancel(ctx))
	defer cancel()
	_ = m.qmp.execute(ctx, "remove-fd", map[string]int{"fdset-id": int(f)}, nil)
}

// oneCheckpoint lets one be taken at a time.
func (m *machine) oneCheckpoint(ctx context.Context) (release func(), err error) {
	select {
	case m.pointing <- struct{}{}:
		return func() { <-m.pointing }, nil
	case <-m.done:
		return nil, errors.New("the machine is over")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
