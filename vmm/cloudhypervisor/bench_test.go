package cloudhypervisor_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// samples are milliseconds and MiB, by what was measured.
type samples map[string][]float64

// note takes the time since start, and gives the time now.
func (s samples) note(name string, start time.Time) time.Time {
	now := time.Now()
	s[name] = append(s[name], float64(now.Sub(start).Microseconds())/1000)
	return now
}

func median(samples []float64) float64 {
	return slices.Sorted(slices.Values(samples))[len(samples)/2]
}

// BenchmarkClone clones a template by the driver and, in turn, by hand: a bare Cloud Hypervisor that is spawned beforehand, told to
// restore, and asked. Figures are medians; ratio is the driver's restore to the first answer by the bare one's.
func BenchmarkClone(b *testing.B) {
	l := newLab(b, vmm.Direct{}, nil)
	bare := &bareVMM{dir: b.TempDir(), template: l.Template}
	s := samples{}
	for b.Loop() {
		l.clone(b, s)
		bare.clone(b, s)
	}
	b.ReportMetric(0, "ns/op")
	for name := range s {
		b.ReportMetric(median(s[name]), name)
	}
	b.ReportMetric(median(s["ready-ms"])/median(s["bare-ready-ms"]), "ratio")
}

// TestRealFigures is BenchmarkClone where only tests are run, in a KVM host: its samples come back in a file.
func TestRealFigures(t *testing.T) {
	out := os.Getenv("PADDOCK_TEST_OUT")
	if out == "" {
		t.Skip("SKIPPED: PADDOCK_TEST_OUT names no directory for figures (make test-kvm takes them)")
	}
	l := newLab(t, vmm.Direct{}, nil)
	bare := &bareVMM{dir: t.TempDir(), template: l.Template}
	s := samples{}
	for range 15 {
		l.clone(t, s)
		bare.clone(t, s)
	}
	for _, name := range slices.Sorted(maps.Keys(s)) {
		t.Logf("%s: median %.1f", name, median(s[name]))
	}
	t.Logf("ratio of ready-ms: %.2f", median(s["ready-ms"])/median(s["bare-ready-ms"]))
	b, err := json.MarshalIndent(s, "", "  ")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(out, "cloudhypervisor-clone.json"), b, 0o644))
}

// clone is a clone's life by the driver.
func (l *lab) clone(t testing.TB, s samples) {
	ctx := t.Context()
	at := time.Now()
	p, err := l.Driver.Prepare(ctx, l.Template, vmm.Attach{})
	must(t, err)
	at = s.note("prepare-ms", at)
	start := at
	m, err := p.Restore(ctx)
	must(t, err)
	at = s.note("restore-ms", at)
	session, err := vmmtest.TestGuest{}.Dial(ctx, m)
	must(t, err)
	s.note("answer-ms", at)
	at = s.note("ready-ms", start)
	_, err = session.Ask("get")
	must(t, err)
	at = s.note("ping1-ms", at)
	_, err = session.Ask("get")
	must(t, err)
	s.note("ping2-ms", at)
	s.memory(t, "", l.pid(m.ID()))
	session.Close()
	at = time.Now()
	must(t, m.Close())
	s.note("close-ms", at)
}

// memory takes the proportional and the private memory of a process, and of that the anonymous part.
func (s samples) memory(t testing.TB, prefix string, pid int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must(t, err)
	mib := func(field string) (n float64) {
		_, rest, _ := strings.Cut(string(text), "\n"+field+":")
		_, err := fmt.Sscan(rest, &n)
		must(t, err)
		return n / 1024
	}
	for name, v := range map[string]float64{"pss-MiB": mib("Pss"), "private-MiB": mib("Private_Clean") + mib("Private_Dirty"), "anon-MiB": mib("Anonymous")} {
		s[prefix+name] = append(s[prefix+name], v)
	}
}

// bareVMM is the least that can be done: no error is handled, nothing is checked, everything has a path.
type bareVMM struct {
	dir      string
	template vmm.Template
	n        int
}

// configure writes the configuration of a clone whose files are in dir.
func (q *bareVMM) configure(t testing.TB, dir string) {
	b, err := os.ReadFile(q.template.Dir + "/config.json")
	must(t, err)
	var c struct {
		Memory map[string]any
		Disks  []map[string]any
		Vsock  map[string]any
		Serial map[string]any
	}
	must(t, json.Unmarshal(b, &c))
	var all map[string]any
	must(t, json.Unmarshal(b, &all))
	zone := c.Memory["zones"].([]any)[0].(map[string]any)
	zone["shared"], zone["file"] = false, q.template.Dir+"/memory"
	c.Memory["thp"] = false
	c.Disks[0]["path"], c.Disks[1]["path"] = q.template.Boot.Root, dir+"/scratch"
	c.Vsock["socket"], c.Serial["file"] = dir+"/vsock", dir+"/console"
	all["memory"], all["disks"], all["vsock"], all["serial"] = c.Memory, c.Disks, c.Vsock, c.Serial
	all["landlock_enable"] = false
	all["payload"] = map[string]any{"kernel": "/dev/null"} // an initramfs would be opened
	b, err = json.Marshal(all)
	must(t, err)
	must(t, os.WriteFile(dir+"/config.json", b, 0o600))
	must(t, os.Symlink(q.template.Dir+"/state.json", dir+"/state.json"))
}

func (q *bareVMM) clone(t testing.TB, s samples) {
	q.n++
	dir := filepath.Join(q.dir, strconv.Itoa(q.n))
	must(t, os.Mkdir(dir, 0o700))
	at := time.Now()
	must(t, exec.Command("cp", "--sparse=always", q.template.Boot.Scratch, dir+"/scratch").Run())
	must(t, os.Chmod(dir+"/scratch", 0o600))
	q.configure(t, dir)
	cmd := exec.Command(os.Getenv("CLOUD_HYPERVISOR"), "--api-socket", "path="+dir+"/api")
	must(t, cmd.Start())
	conn := dialUnix(dir + "/api")
	request := func(line, body string) {
		_, err := fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", line, len(body), body)
		must(t, err)
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		must(t, err)
		defer answer.Body.Close()
		if answer.StatusCode/100 != 2 {
			b, _ := io.ReadAll(answer.Body)
			t.Fatalf("%s: %s %s", line, answer.Status, b)
		}
	}
	request("GET /api/v1/vmm.ping", "")
	at = s.note("bare-prepare-ms", at)
	start := at
	request("PUT /api/v1/vm.restore", `{"source_url":"file://`+dir+`","resume":true}`)
	at = s.note("bare-restore-ms", at)
	guest := dialUnix(dir + "/vsock")
	_, err := io.WriteString(guest, "CONNECT 1024\n")
	must(t, err)
	r := bufio.NewReader(guest)
	_, err = r.ReadString('\n')
	must(t, err)
	_, err = io.WriteString(guest, "\nsync bare\n")
	must(t, err)
	_, err = r.ReadString('\n')
	must(t, err)
	s.note("bare-answer-ms", at)
	s.note("bare-ready-ms", start)
	s.memory(t, "bare-", cmd.Process.Pid)
	at = time.Now()
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	s.note("bare-close-ms", at)
	guest.Close()
	conn.Close()
}

// dialUnix waits for a socket that a VMM makes.
func dialUnix(path string) net.Conn {
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn
		}
		time.Sleep(time.Millisecond)
	}
}
