package steps_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/paddockvm/paddock/test/kvmhost/steps"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shell is a step of one line of shell.
func shell(t *testing.T, timeout time.Duration, line string) steps.Step {
	t.Helper()
	return steps.Step{Name: line, Argv: []string{"/bin/sh", "-c", line}, Dir: t.TempDir(), Timeout: timeout}
}

// run runs steps and gives what was told of each: its output and its end.
func run(t *testing.T, w steps.Where, list ...steps.Step) (said []string, ends []steps.Event) {
	t.Helper()
	p := steps.Plan{Steps: list}
	err := steps.Run(t.Context(), p, w, func(e steps.Event) {
		switch e.Kind {
		case steps.Begin:
			said = append(said, "")
		case steps.Output:
			said[len(said)-1] += string(e.Data)
		case steps.End:
			ends = append(ends, e)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return said, ends
}

func TestEnds(t *testing.T) {
	said, ends := run(t, steps.Where{},
		shell(t, time.Minute, "echo one; echo two >&2"), shell(t, time.Minute, "exit 3"), shell(t, time.Minute, "kill -9 $$"),
		shell(t, time.Minute, "/no/such/program"), shell(t, time.Minute, "echo last"))
	if diff := cmp.Diff([]string{"one\ntwo\n", "", "", "/bin/sh: 1: /no/such/program: not found\n", "last\n"}, said); diff != "" {
		t.Errorf("said (-want +got):\n%s", diff)
	}
	var codes []int
	for _, e := range ends {
		codes = append(codes, e.Code)
		if (e.Code == 0) != (e.Detail == "") {
			t.Errorf("%s: code %d, detail %q", e.Step, e.Code, e.Detail)
		}
	}
	if diff := cmp.Diff([]int{0, 3, -1, 127, 0}, codes); diff != "" {
		t.Errorf("codes (-want +got):\n%s", diff)
	}
}

// A step whose time is over is asked where it was, and ended with its children; the next is run.
func TestDeadline(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	hang := "trap 'echo asked' QUIT; sleep 600 >/dev/null 2>&1 & echo $! >" + pid + "; echo begun; wait; false"
	said, ends := run(t, steps.Where{}, shell(t, 5*time.Second, hang), shell(t, time.Minute, "echo next"))
	if said[0] != "begun\nasked\n" || said[1] != "next\n" {
		t.Errorf("said %q", said)
	}
	if ends[0].Code == 0 || !strings.Contains(ends[0].Detail, "took more than 5s") {
		t.Errorf("end: %+v", ends[0])
	}
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) { // a process that is killed ends when it is its turn
		state, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(b)), "stat"))
		if err != nil || strings.Contains(string(state), ") Z ") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("its child lives: %s", state)
		}
	}
}

func TestWhatAStepLeavesIsItsFailure(t *testing.T) {
	w := steps.Where{Enter: func(step string, _ *exec.Cmd) (func() error, error) {
		if step == "echo refused" {
			return nil, errors.New("no room")
		}
		return func() error { return errors.New("left a process") }, nil
	}}
	said, ends := run(t, w, shell(t, time.Minute, "echo done"), shell(t, time.Minute, "echo refused"))
	if said[0] != "done\n" || ends[0].Code != -1 || ends[0].Detail != "left a process" {
		t.Errorf("%q, %+v", said[0], ends[0])
	}
	if said[1] != "" || ends[1].Code != -1 || ends[1].Detail != "no room" {
		t.Errorf("%q, %+v", said[1], ends[1])
	}
}

func TestFiles(t *testing.T) {
	out := t.TempDir()
	p := steps.Plan{Out: out, Env: []string{"WHO=plan"}, Steps: []steps.Step{{
		Name: "a", Argv: []string{"/bin/sh", "-c", `mkdir "$PADDOCK_TEST_OUT/sub"; head -c 100000 /dev/zero >"$PADDOCK_TEST_OUT/sub/big"; echo $WHO $TO >"$PADDOCK_TEST_OUT/small"`},
		Dir: out, Env: []string{"TO=step"}, Timeout: time.Minute,
	}}}
	var b bytes.Buffer
	lines := steps.NewLines(&b)
	if err := errors.Join(steps.Run(t.Context(), p, steps.Where{}, lines.Emit), lines.Err()); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for d := json.NewDecoder(&b); d.More(); {
		var e steps.Event
		if err := d.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if e.Kind == steps.File {
			files[e.Detail] += string(e.Data)
		}
	}
	if diff := cmp.Diff(map[string]string{"sub/big": string(make([]byte, 100000)), "small": "plan step\n"}, files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := steps.Plan{}
	for _, name := range []string{"first", "second"} {
		p.Steps = append(p.Steps, steps.Step{Name: name, Argv: []string{"/bin/sh", "-c", "echo begun; exec sleep 600"}, Dir: t.TempDir(), Timeout: time.Minute})
	}
	var begun []string
	err := steps.Run(ctx, p, steps.Where{}, func(e steps.Event) {
		if e.Kind == steps.Output {
			begun = append(begun, e.Step)
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || len(begun) != 1 {
		t.Errorf("%v after %q", err, begun)
	}
}
