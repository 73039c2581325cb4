package worker

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
)

// The spool is a directory of results that could not be reported yet. Each is a file of JSON, and beside it, where there are any, the events
// that have to be stored before it, in frames.

func spoolDir(dir string) string { return filepath.Join(dir, "spool") }

const (
	resultSuffix = ".json"
	eventsSuffix = ".events"
	tornPrefix   = "new-" // of what is still being written
)

// delivery is a result on its way.
type delivery struct {
	jobs.Report
	name string // its files' in the spool, without their suffixes; empty where it is not there
}

func (d *delivery) resultFile() string { return d.name + resultSuffix }
func (d *delivery) eventsFile() string { return d.name + eventsSuffix }

// forget takes it out of the spool.
func (d *delivery) forget() {
	if d.name == "" {
		return
	}
	_ = os.Remove(d.resultFile()) // first: without it, the events are nobody's
	_ = os.Remove(d.eventsFile())
	d.name = ""
}

// setAside keeps it for people to look at.
func (d *delivery) setAside() {
	for _, f := range []string{d.resultFile(), d.eventsFile()} {
		_ = os.Rename(f, f+".broken")
	}
	d.name = ""
}

// spool writes a report to disk, durably, after what is left of its attempt's events; s is nil where nothing is.
func (w *Worker) spool(r jobs.Report, s *stream) (*delivery, error) {
	w.metrics.reportsLate.Inc()
	dir := spoolDir(w.cfg.Dir)
	d := &delivery{Report: r, name: filepath.Join(dir, fmt.Sprintf("%s.%d.%d", r.Job, r.Attempt, r.Epoch))}
	if s != nil {
		err := writeDurably(d.eventsFile(), func(b *bufio.Writer) error { return s.writeRest(b) })
		if err != nil {
			return nil, err
		}
	}
	err := writeDurably(d.resultFile(), func(b *bufio.Writer) error { return json.NewEncoder(b).Encode(r) })
	if err != nil {
		return nil, errors.Join(err, os.Remove(d.eventsFile()))
	}
	return d, nil
}

// writeDurably writes a file that is whole, and there whatever happens, or not there.
func writeDurably(name string, write func(*bufio.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), tornPrefix)
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(f, chunkBytes)
	err = errors.Join(write(b), b.Flush())
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := syncDir(filepath.Dir(name)); err != nil {
		return errors.Join(err, os.Remove(name)) // nobody will look for it
	}
	return nil
}

// syncDir makes a directory's entries durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readSpool gives what an earlier life of this worker could not report, the last leased last. A result that cannot be read is set aside, not
// lost; what was being written when its worker died is deleted.
func (w *Worker) readSpool(ctx context.Context) (l []*delivery, _ error) {
	entries, err := os.ReadDir(spoolDir(w.cfg.Dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read spool: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(spoolDir(w.cfg.Dir), e.Name())
		if strings.HasPrefix(e.Name(), tornPrefix) {
			_ = os.Remove(name)
			continue
		}
		whole, ok := strings.CutSuffix(name, resultSuffix)
		if !ok {
			continue
		}
		d := &delivery{name: whole}
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read spool: %w", err)
		}
		if err := json.Unmarshal(b, &d.Report); err != nil {
			zerolog.Ctx(ctx).Error().Err(err).Str("file", name).Msg("unreadable result set aside")
			d.setAside()
			continue
		}
		l = append(l, d)
	}
	for _, e := range entries { // events whose result was never written, or has been reported
		if whole, ok := strings.CutSuffix(e.Name(), eventsSuffix); ok && !slices.ContainsFunc(l, func(d *delivery) bool { return filepath.Base(d.name) == whole }) {
			_ = os.Remove(filepath.Join(spoolDir(w.cfg.Dir), e.Name()))
		}
	}
	slices.SortFunc(l, func(a, b *delivery) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return l, nil
}
