package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// backupName is the job's, and its target's, in QEMU.
const backupName = "checkpoint"

// backup is a job of QEMU's that copies the scratch disk as it was when the job began (docs/interop/live-block-operations.rst in QEMU's
// source). What the guest writes meanwhile waits for the old content to be copied: the copy is a file beside the disk's own, so that
// a full file system is no new danger to it.
type backup struct {
	m       *machine
	file    *os.File // the copy
	fds     fdset
	node    bool // the target is there
	running bool
}

// prepareBackup opens the target, while the machine runs; nil for a machine without a scratch disk.
func (m *machine) prepareBackup(ctx context.Context) (_ *backup, err error) {
	if m.boot.Scratch == "" {
		return nil, nil
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
	if b.file, err = unnamed(m.d.cfg.RunDir); err != nil {
		return nil, err
	}
	if err := b.file.Truncate(info.Size()); err != nil {
		return nil, err
	}
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	if b.fds, err = m.lend(ctx, b.file); err != nil {
		return nil, err
	}
	err = m.qmp.execute(ctx, "blockdev-add", map[string]any{
		"driver": "file", "node-name": backupName, "filename": b.fds.path(), "locking": "off", "discard": "unmap", "detect-zeroes": "unmap",
		"cache": map[string]bool{"no-flush": true},
	}, nil)
	b.node = err == nil
	return b, err
}

// start begins the job: the copy is of this moment.
func (b *backup) start(ctx context.Context) error {
	err := b.m.qmp.execute(ctx, "blockdev-backup", map[string]any{
		"job-id": backupName, "device": scratchNode, "target": backupName, "sync": "full", "auto-dismiss": false,
	}, nil)
	b.running = err == nil
	return err
}

// wait waits for the job's end. How long that takes is the disk's business.
func (b *backup) wait(ctx context.Context) error {
	if err := b.concluded(ctx); err != nil {
		return err
	}
	b.running = false
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
	for _, j := range jobs {
		if j.ID == backupName && j.Error != "" {
			return errors.Join(fmt.Errorf("copy the scratch disk: %s", j.Error), err)
		}
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

// close ends the job where it still runs, and takes what was lent back.
func (b *backup) close(ctx context.Context) error {
	defer b.file.Close()
	ctx, cancel := b.m.d.step(context.WithoutCancel(ctx))
	defer cancel()
	var errs []error
	if b.running {
		errs = append(errs, b.m.qmp.execute(ctx, "block-job-cancel", map[string]any{"device": backupName, "force": true}, nil))
		if err := b.wait(ctx); err != nil && errors.Is(err, context.Cause(ctx)) {
			errs = append(errs, err)
		}
	}
	if b.node {
		errs = append(errs, b.m.qmp.execute(ctx, "blockdev-del", map[string]string{"node-name": backupName}, nil))
	}
	b.m.takeBack(ctx, b.fds)
	select {
	case <-b.m.done: // nothing is left to be cleared away
		return nil
	default:
		return errors.Join(errs...)
	}
}

// fdset is a descriptor of ours that QEMU opens by a name; 0: none.
type fdset int

func (f fdset) path() string { return "/dev/fdset/" + strconv.Itoa(int(f)) }

// lend gives QEMU a descriptor. It opens it with the access that the descriptor has, no other.
func (m *machine) lend(ctx context.Context, f *os.File) (fdset, error) {
	var added struct {
		ID int `json:"fdset-id"`
	}
	err := m.qmp.execute(ctx, "add-fd", nil, &added, f)
	return fdset(added.ID), err
}

// takeBack has QEMU forget a descriptor, once it has closed what it opened by it. Where that fails QEMU is over.
func (m *machine) takeBack(ctx context.Context, f fdset) {
	if f != 0 {
		_ = m.qmp.execute(context.WithoutCancel(ctx), "remove-fd", map[string]int{"fdset-id": int(f)}, nil)
	}
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
