package chaos

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// journal is what the programs themselves say, each on a connection of its own (see the command program): nothing of Paddock is between.
type journal struct {
	l  *net.UnixListener
	wg sync.WaitGroup

	mu   sync.Mutex
	runs map[string][]run // by job, in the order in which they began to be heard
	bad  []string
	open map[net.Conn]bool
}

// run is a program's life. Begin and a whole end are by its own clock, which is this host's; where it was killed, end is when its
// connection broke, by ours.
type run struct {
	attempt    int
	begin, end time.Time
	whole      bool // it came to its end
}

// heardLate is by how much later than a program's death this process may notice it, on a machine whose processors have a lot to do.
const heardLate = 500 * time.Millisecond

func openJournal(path string) (*journal, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	j := &journal{l: l, runs: map[string][]run{}, open: map[net.Conn]bool{}}
	j.wg.Go(j.accept)
	return j, nil
}

func (j *journal) accept() {
	for {
		c, err := j.l.Accept()
		if err != nil {
			return // closed
		}
		j.mu.Lock()
		j.open[c] = true
		j.mu.Unlock()
		j.wg.Go(func() { j.hear(c) })
	}
}

// hear takes one program's words.
func (j *journal) hear(c net.Conn) {
	defer func() {
		_ = c.Close()
		j.mu.Lock()
		delete(j.open, c)
		j.mu.Unlock()
	}()
	r := bufio.NewReader(c)
	first, err := r.ReadString('\n')
	if err != nil {
		return // killed before it said anything: nothing of it has run
	}
	var job string
	var this run
	var begin int64
	if n, _ := fmt.Sscanf(first, "%s %d %d\n", &job, &this.attempt, &begin); n != 3 {
		j.mu.Lock()
		j.bad = append(j.bad, first)
		j.mu.Unlock()
		return
	}
	this.begin = time.UnixMicro(begin)
	j.mu.Lock()
	at := len(j.runs[job])
	j.runs[job] = append(j.runs[job], this)
	j.mu.Unlock()
	last, err := r.ReadString('\n')
	this.end = time.Now()
	if err == nil {
		var end int64
		if n, _ := fmt.Sscanf(last, "%d\n", &end); n == 1 {
			this.end, this.whole = time.UnixMicro(end), true
		}
	}
	j.mu.Lock()
	j.runs[job][at] = this
	j.mu.Unlock()
}

// of gives the runs of a job.
func (j *journal) of(job string) []run {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.runs[job])
}

// close ends it; what still runs is heard no more.
func (j *journal) close() error {
	err := j.l.Close()
	j.mu.Lock()
	for c := range j.open {
		_ = c.Close()
	}
	j.mu.Unlock()
	j.wg.Wait()
	return err
}
