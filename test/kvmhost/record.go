package kvmhost

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/paddockvm/paddock/test/kvmhost/steps"
)

// record keeps what hosts tell: results, logs and files.
type record struct {
	out     string
	live    io.Writer
	results []Result // of sets, to be read when no host runs any more

	mu     sync.Mutex
	judges map[string]*judge
	files  map[string]bool
}

func newRecord(sets []Set, o Options) *record {
	j := &record{out: o.Out, live: o.Live, judges: map[string]*judge{}, files: map[string]bool{}}
	j.results = make([]Result, len(sets))
	for i, s := range sets {
		j.results[i].Set = s
		set := &judge{r: &j.results[i], live: o.Live}
		if o.Hosts > 1 {
			set.live = &marked{to: o.Live, mark: s.Name + ": "}
		}
		j.judges[s.Name] = set
	}
	return j
}

// close closes the logs of sets that were not seen to end.
func (j *record) close() {
	for _, set := range j.judges {
		set.log.Close() // nil is an error, and no harm
	}
}

// event takes one event. What cannot be written is said, once for each event: the results count all the same.
func (j *record) event(e steps.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.take(e); err != nil {
		fmt.Fprintln(j.live, "kvmhost:", err)
	}
}

func (j *record) take(e steps.Event) error {
	if e.Kind == steps.File {
		return j.file(e)
	}
	set := j.judges[e.Step]
	if set == nil {
		return nil
	}
	switch e.Kind {
	case steps.Begin:
		set.r.Ran = true
		fmt.Fprintf(j.live, "\n== %s: %s\n", e.Step, set.r.Set.what())
		var err error
		set.log, err = os.Create(filepath.Join(j.out, set.r.Set.file()+".log"))
		return err
	case steps.Output:
		_, _ = set.Write(e.Data) // a judge takes everything
		_, _ = set.live.Write(e.Data)
		_, err := set.log.Write(e.Data)
		return err
	case steps.End:
		set.end(e)
		fmt.Fprintf(j.live, "== %s: %s after %.1f s\n", e.Step, set.r.state(), e.Took.Seconds())
	}
	return nil
}

// what says what a set runs.
func (s Set) what() string {
	if s.Package == "" {
		return s.Shell
	}
	return strings.TrimSpace("./" + s.Package + " " + s.Run)
}

// file writes a piece of a file that tests have left, below the results. Its name comes from a guest.
func (j *record) file(e steps.Event) error {
	if !filepath.IsLocal(e.Detail) {
		return fmt.Errorf("the host tells a file named %q", e.Detail)
	}
	root, err := os.OpenRoot(j.out)
	if err != nil {
		return err
	}
	defer root.Close()
	name := filepath.Join("files", e.Detail)
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	flag := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if !j.files[name] {
		flag |= os.O_TRUNC
		j.files[name] = true
	}
	f, err := root.OpenFile(name, flag, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(e.Data)
	return err
}

// marked writes whole lines, each with a mark before it: of several hosts that are told of at once.
type marked struct {
	to   io.Writer
	mark string
	part []byte
}

func (m *marked) Write(b []byte) (int, error) {
	m.part = append(m.part, b...)
	end := bytes.LastIndexByte(m.part, '\n') + 1
	var lines []byte
	for line := range bytes.Lines(m.part[:end]) {
		lines = append(append(lines, m.mark...), line...)
	}
	m.part = slices.Delete(m.part, 0, end)
	_, err := m.to.Write(lines)
	return len(b), err
}

// shared is a writer for several at once.
type shared struct {
	mu sync.Mutex
	to io.Writer
}

func (s *shared) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.to.Write(b)
}
