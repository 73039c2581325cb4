package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/crypto/bcrypt"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/test/port"
)

// watcher reads jobs' events over HTTP.
type watcher struct {
	*testing.T
	addr           string
	user, password string
}

// get asks for a job's events after one.
func (w watcher) get(ctx context.Context, job, query, after string) (*http.Response, error) {
	w.Helper()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.addr+"/v1/jobs/"+job+"/events"+query, nil)
	if err != nil {
		w.Fatal(err)
	}
	if w.user != "" {
		q.SetBasicAuth(w.user, w.password)
	}
	if after != "" {
		q.Header.Set("Last-Event-ID", after)
	}
	return http.DefaultClient.Do(q)
}

// refused checks that a request is answered with an error.
func (w watcher) refused(what, job, query string, status int, code jobs.Code) {
	w.Helper()
	r, err := w.get(w.Context(), job, query, "")
	if err != nil {
		w.Fatal(err)
	}
	defer r.Body.Close()
	var e jobs.Error
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil || r.StatusCode != status || e.Code != code {
		w.Errorf("%s: %s %+v %v, want %d %s", what, r.Status, e, err, status, code)
	}
}

// read gives the events of a stream that came whole, with their ids.
func read(in io.Reader, each func(id string, e jobs.Event)) error {
	var id, data string
	for lines := bufio.NewReader(in); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return err
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "id":
			id = value
		case "data":
			data = value
		case "":
			if data == "" {
				continue
			}
			var e jobs.Event
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				return err
			}
			each(id, e)
			data = ""
		}
	}
}

// watch reads a job's output to its end, however often the connection is lost: after each it comes back, as an EventSource does. cut says after how
// many bytes this side has had enough.
func (w watcher) watch(job string, cut func() int64, each func(out string)) (out string, last jobs.Event, connections int) {
	w.Helper()
	return w.watchAfter("", job, cut, each)
}

// watchAfter is watch for who has seen the event of that id, and what was before.
func (w watcher) watchAfter(after, job string, cut func() int64, each func(out string)) (out string, last jobs.Event, connections int) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 3*time.Minute)
	defer cancel()
	for ; ; connections++ {
		r, err := w.get(ctx, job, "", after)
		if ctx.Err() != nil {
			w.Fatalf("after %d connections and %s it has not ended", connections, after)
		}
		if err != nil { // the server is away
			time.Sleep(20 * time.Millisecond)
			continue
		}
		switch {
		case r.StatusCode == http.StatusNoContent:
			r.Body.Close()
			return out, last, connections
		case r.StatusCode != http.StatusOK:
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			w.Fatalf("after %s: %s %s", after, r.Status, b)
		}
		_ = read(io.LimitReader(r.Body, cut()), func(id string, e jobs.Event) {
			if id != fmt.Sprintf("%d.%d", e.Attempt, e.Seq) || id == after || last.Final {
				w.Errorf("%s comes after %s: %+v", id, after, e)
			}
			out, after, last = out+e.Text, id, e
			if each != nil {
				each(out)
			}
		})
		r.Body.Close()
	}
}

// counting is a shell's line that prints numbered lines for some seconds, and what it prints.
func counting(from, to int) (line, out string) {
	const pad = "-------------------------------------------------------------------------------------------------"
	var want strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintf(&want, "line %d %s\n", i, pad)
	}
	return fmt.Sprintf("i=%d; while [ $i -le %d ]; do echo line $i %s; i=$((i+1)); sleep 0.01; done; ", from, to, pad), want.String()
}

// A running job is watched over HTTP by somebody whose connection is cut at random again and again, and sees every byte once; so does who comes
// when it has ended, and who sees the dispatcher killed meanwhile and another begin.
func TestHTTPWatch(t *testing.T) {
	needMachines(t)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	addr, broker := port.Addr(harness.FreePort(t)), port.Addr(harness.FreePort(t))
	opts := harness.Options{Command: "dispatcher", Dir: shortDir(t), NATS: broker, Args: []string{"--http-listen", addr}}
	dispatcher := start(t, opts)
	start(t, harness.Options{Command: "worker", NATS: broker, Driver: "hostproc", Args: []string{"--images", "base"}})
	c := connect(t, dispatcher)
	w, all := watcher{T: t, addr: addr}, t

	t.Run("cut", func(t *testing.T) {
		w := w
		w.T = t
		line, want := counting(1, 300)
		job := submit(t, c, shell(line))
		limit := int64(500) // it grows, for nobody knows how large an event is
		out, last, n := w.watch(job, func() int64 {
			limit += limit / 2
			return limit + random.Int64N(limit)
		}, nil)
		if out != want || !last.Final || last.Result.Ending != jobs.Exited || n < 5 {
			t.Errorf("seed %d: over %d connections it was\n%s\nand then %+v", seed, n, out, last)
		}
		out, last, n = w.watch(job, func() int64 { return 1 << 40 }, nil)
		if out != want || !last.Final || n != 1 {
			t.Errorf("who comes late sees, over %d connections,\n%s\nand then %+v", n, out, last)
		}
		// Somebody who goes by the events' numbers alone.
		r, err := w.get(t.Context(), job, fmt.Sprintf("?after=%d.%d", last.Attempt, last.Seq), "")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusNoContent {
			t.Errorf("after the end: %s", r.Status)
		}
	})
	t.Run("restart", func(t *testing.T) {
		w := w
		w.T = t
		line, want := counting(1, 100)
		rest, more := counting(101, 200)
		spec := shell(line + "read x; " + rest)
		spec.StdinStream = true
		job := submit(t, c, spec)
		killed := false
		out, last, n := w.watch(job, func() int64 { return 1 << 40 }, func(out string) {
			if killed || out != want {
				return
			}
			killed = true
			dispatcher.Kill()
			dispatcher = start(all, opts)
			bustest.Eventually(t, "the job gets its input", func() bool { // from its worker, which has to come back, too
				_, err := c.Stdin(t.Context(), job).Write([]byte("go on\n"))
				return err == nil
			})
		})
		if out != want+more || !last.Final || n < 2 {
			t.Errorf("over %d connections it was\n%s\nand then %+v", n, out, last)
		}
	})
	// Who reads nothing keeps nobody: what the job prints is more than all buffers between hold.
	t.Run("slow", func(t *testing.T) {
		w := w
		w.T = t
		job := submit(t, c, shell("head -c 40000000 /dev/zero | tr '\\0' x"))
		slow, err := w.get(t.Context(), job, "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Body.Close()
		if r := wait(t, c, job); r.Ending != jobs.Exited && r.Ending != jobs.OutputLimit {
			t.Errorf("ended %s", r.Ending)
		}
		fast, last, _ := w.watch(job, func() int64 { return 1 << 40 }, nil)
		// The slow one has been left where this took half a minute: then it comes back for the rest, as an EventSource does.
		seen, at := "", ""
		_ = read(slow.Body, func(id string, e jobs.Event) { seen, at = seen+e.Text, id })
		rest, final, _ := w.watchAfter(at, job, func() int64 { return 1 << 40 }, nil)
		if seen+rest != fast || !last.Final || rest != "" && !final.Final {
			t.Errorf("the slow one has seen %d bytes and come back for %d, the other has seen %d, and then %+v", len(seen), len(rest), len(fast), last)
		}
	})
}

// Who may is who may over NATS with a password: with the file of credentials, as it is now.
func TestHTTPAccess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials.yaml")
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	var list []access.Credential
	for name, who := range map[string]access.Identity{
		"acme": {Role: access.Tenant, Name: "acme"}, "other": {Role: access.Tenant, Name: "other"}, "eve": {Role: access.Monitor, Name: "eve"}, "w": {Role: access.Worker, Name: "w9"},
	} {
		list = append(list, access.Credential{User: name, Password: string(hash), Identity: who})
	}
	public, seedFile := bustest.Key(t)
	list = append(list, access.Credential{NKey: public, Identity: access.Identity{Role: access.Tenant, Name: "acme"}})
	if err := access.Write(file, list); err != nil {
		t.Fatal(err)
	}
	addr := port.Addr(harness.FreePort(t))
	p := start(t, harness.Options{Driver: "hostproc", Args: []string{"--images", "base", "--nats-credentials", file, "--http-listen", addr}})
	c, err := client.Connect(p.URL, client.Tenant("acme"), client.Credentials(seedFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	on := shell("echo on; sleep 600")
	on.Limits.WallMS = 600_000 // it is there to be watched, however slow this machine is
	job := submit(t, c, on)
	untilOutput(t, c, job)
	as := func(user string) watcher { return watcher{T: t, addr: addr, user: user, password: "secret"} }

	wrong := as("acme")
	wrong.password = "secre"
	wrong.refused("a wrong password", job, "", http.StatusUnauthorized, jobs.CodeForbidden)
	as("").refused("nobody", job, "", http.StatusUnauthorized, jobs.CodeForbidden)
	as("nobody").refused("an unknown name", job, "", http.StatusUnauthorized, jobs.CodeForbidden)
	as("other").refused("another tenant's", job, "", http.StatusNotFound, jobs.CodeNotFound)
	as("other").refused("another tenant's, by name", job, "?tenant=acme", http.StatusForbidden, jobs.CodeForbidden)
	as("w").refused("a worker", job, "?tenant=acme", http.StatusForbidden, jobs.CodeForbidden)
	as("eve").refused("a monitor that names nobody", job, "", http.StatusBadRequest, jobs.CodeInvalid)
	as("eve").refused("a monitor that names another", job, "?tenant=other", http.StatusNotFound, jobs.CodeNotFound)

	streams := map[string]*bufio.Reader{}
	for user, query := range map[string]string{"acme": "", "eve": "?tenant=acme"} {
		r, err := as(user).get(t.Context(), job, query, "")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", user, r.Status)
		}
		streams[user] = bufio.NewReader(r.Body)
		seen := ""
		for !strings.Contains(seen, `"text":"on\n"`) {
			line, err := streams[user].ReadString('\n')
			if err != nil {
				t.Fatalf("%s: %v after\n%s", user, err, seen)
			}
			seen += line
		}
	}
	// A credential that goes takes its streams along, and no others.
	err = access.Change(file, func(l []access.Credential) (kept []access.Credential, _ error) {
		for _, one := range l {
			if one.User != "acme" {
				kept = append(kept, one)
			}
		}
		return kept, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, streams["acme"]); err != nil {
		t.Error(err)
	}
	as("acme").refused("who is gone", job, "", http.StatusUnauthorized, jobs.CodeForbidden)
	if _, err := c.Cancel(t.Context(), job); err != nil {
		t.Error(err)
	}
	var last jobs.Event
	_ = read(streams["eve"], func(_ string, e jobs.Event) { last = e })
	if !last.Final || last.Result.Ending != jobs.Canceled {
		t.Errorf("the last that the monitor sees is %+v", last)
	}
}

// A dispatcher on NATS servers of somebody else's serves what they have, and lets in by the file by which it answers them.
func TestHTTPOnACluster(t *testing.T) {
	needMachines(t)
	cluster := bustest.StartCluster(t, 3)
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	seed := cluster.Let(access.Tenant, "acme")
	if err := access.Change(cluster.Credentials, func(l []access.Credential) ([]access.Credential, error) {
		return append(l, access.Credential{User: "ci", Password: string(hash), Identity: access.Identity{Role: access.Tenant, Name: "acme"}}), nil
	}); err != nil {
		t.Fatal(err)
	}
	ca, addr := cluster.CA.File("ca.pem"), port.Addr(harness.FreePort(t))
	start(t, harness.Options{Command: "dispatcher", Args: []string{
		"--listen", "", "--nats", cluster.URL(), "--nats-callout", string(cluster.Keys), "--nats-credentials", cluster.Credentials, "--nats-tls-ca", ca, "--http-listen", addr,
	}})
	c, err := client.Connect(cluster.URL(), client.Tenant("acme"), client.Credentials(seed), client.NATS(nats.RootCAs(ca)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	// Nobody is there to run it: it is watched while it waits.
	job := submit(t, c, jobs.Spec{Language: "sh", Source: "true"})
	w := watcher{T: t, addr: addr, user: "ci", password: "secret"}
	r, err := w.get(t.Context(), job, "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		t.Fatal(r.Status)
	}
	if _, err := c.Cancel(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	var last jobs.Event
	_ = read(r.Body, func(_ string, e jobs.Event) { last = e })
	if !last.Final || last.Result.Ending != jobs.Canceled {
		t.Errorf("the last is %+v", last)
	}
}

// A real EventSource, whose connection is broken again and again, comes back by itself, sees everything once, and stops for good after the end.
func TestEventSource(t *testing.T) {
	modules, err := harness.Node(t.Context(), "eventsource@3.0.7")
	if err != nil {
		if os.Getenv("REQUIRE_PACKAGES") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	addr := port.Addr(harness.FreePort(t))
	p := start(t, harness.Options{Driver: "hostproc", Args: []string{"--images", "base", "--http-listen", addr}})
	relay := harness.StartRelay(t, addr)
	c := connect(t, p)
	spec := shell("i=1; while [ $i -le 4 ]; do read line; echo $i $line; i=$((i+1)); done")
	spec.StdinStream, spec.Limits.WallMS = true, 600_000 // it waits for node, which begins and comes back in its own time
	job := submit(t, c, spec)
	cmd := exec.CommandContext(t.Context(), "node", "-e", eventSource, "http://"+relay.Addr()+"/v1/jobs/"+job+"/events")
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(modules, "node_modules"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	in := c.Stdin(t.Context(), job)
	var got []string
	lost := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		if line == "lost" {
			lost++
			continue
		}
		got = append(got, line)
		if n := len(got); n <= 4 { // running, and then each line
			if n > 1 {
				relay.Heal() // which breaks what there is
			}
			if _, err := in.Write([]byte("x\n")); err != nil {
				t.Error(err)
			}
		}
	}
	if want := "running|1 x|2 x|3 x|4 x|exited|closed 204"; strings.Join(got, "|") != want || lost < 3 {
		t.Errorf("got %q, and the connection was lost %d times, want %s\n%s", got, lost, want, stderr.String())
	}
}

// eventSource prints what it is told, one word each, and does nothing to come back, or to stop.
const eventSource = `
const { EventSource } = require("eventsource");
const events = new EventSource(process.argv[1]);
events.addEventListener("state", (e) => console.log(JSON.parse(e.data).state));
events.addEventListener("output", (e) => process.stdout.write(JSON.parse(e.data).text));
events.addEventListener("result", (e) => console.log(JSON.parse(e.data).result.ending));
events.addEventListener("error", (e) => console.log(events.readyState === EventSource.CLOSED ? "closed " + e.code : "lost"));
`

// Where everybody is let in, nobody is who comes under a name that is none of this host's.
func TestHTTPHost(t *testing.T) {
	addr := port.Addr(harness.FreePort(t))
	start(t, harness.Options{Command: "dispatcher", Args: []string{"--http-listen", addr}})
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	fmt.Fprintf(nc, "GET /v1/jobs/%s/events HTTP/1.1\r\nHost: evil.example\r\n\r\n", jobs.NewID())
	r, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusForbidden {
		t.Error(r.Status)
	}
}
