package kvmhost

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/paddockvm/paddock/test/kvmhost/steps"
)

// record keeps what is told: results, logs and files.
type record struct {
	out     string
	live    io.Writer
	results []Result
	judges  map[string]*judge
	log     *os.File // of the set that runs
	files   map[string]bool
}

func newRecord(sets []Set, o Options) *record {
	j := &record{out: o.Out, live: o.Live, judges: map[string]*judge{}, files: map[string]bool{}}
	j.results = make([]Result, len(sets))
	for i, s := range sets {
		j.results[i].Set = s
		j.judges[s.Name] = &judge{r: &j.results[i]}
	}
	return j
}

func (j *record) close() {
	if j.log != nil {
		j.log.Close()
	}
}

// event takes one event. What cannot be written is said, once for each event: the results count all the same.
func (j *record) event(e steps.Event) {
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
		j.close()
		var err error
		j.log, err = os.Create(filepath.Join(j.out, set.r.Set.file()+".log"))
		return err
	case steps.Output:
		_, _ = set.Write(e.Data) // a judge takes everything
		_, _ = j.live.Write(e.Data)
		_, err := j.log.Write(e.Data)
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
