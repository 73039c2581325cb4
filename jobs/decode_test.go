package jobs_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/jobs"
)

func TestDecodeFaults(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)
	for _, tt := range []struct {
		name, body string
		code       jobs.Code
		paths      []string
	}{
		{"empty", ``, jobs.CodeInvalid, []string{""}},
		{"garbage", `{{`, jobs.CodeInvalid, []string{""}},
		{"list", `[]`, jobs.CodeInvalid, []string{""}},
		{"null", `null`, jobs.CodeInvalid, []string{""}},
		{"cut short", `{"image":"base"`, jobs.CodeInvalid, []string{""}},
		{"trailing", `{"language":"python","source":"1"} x`, jobs.CodeInvalid, []string{""}},
		{"deep", deep, jobs.CodeInvalid, []string{""}},
		{"invalid UTF-8", "{\"source\":\"\xff\"}", jobs.CodeInvalid, []string{""}},
		{"too large", `{"source":"` + strings.Repeat("x", jobs.MaxSpecBytes) + `"}`, jobs.CodeTooLarge, nil},
		{"nothing", `{}`, jobs.CodeInvalid, []string{"image", "steps"}},
		{"NUL", `{"language":"python","source":"a\u0000b"}`, jobs.CodeInvalid, []string{"source"}},
		{"twice", `{"language":"python","language":"python","source":"1"}`, jobs.CodeInvalid, []string{"language"}},
		{"huge number", `{"language":"python","source":"1","limits":{"wall_ms":1e99}}`, jobs.CodeInvalid, []string{"limits.wall_ms"}},
		{"fraction", `{"language":"python","source":"1","limits":{"wall_ms":1.5}}`, jobs.CodeInvalid, []string{"limits.wall_ms"}},
		{"half a surrogate pair", `{"language":"python","source":"a\ud800b"}`, jobs.CodeInvalid, []string{"source"}},
		{"the other half", `{"image":"base","steps":[{"cmd":"a","args":["\uD83D","\ude00\ud83d"]}]}`, jobs.CodeInvalid, []string{"steps[0].args[0]", "steps[0].args[1]"}},
		{"half a pair in a name", `{"language":"python","source":"1","labels":{"a\udfff":"b"}}`, jobs.CodeInvalid, []string{"labels", "labels.a\uFFFD"}},
		{"a file where the source goes", `{"language":"python","source":"1","files":[{"path":"x"},{"path":"main.py","text":"lost"}]}`, jobs.CodeInvalid, []string{"files[1].path"}},
		{"the same, absolute", `{"language":"bash","source":"1","files":[{"path":"/work/./main.sh"}]}`, jobs.CodeInvalid, []string{"files[0].path"}},
		{"one file by two paths", `{"image":"base","steps":[{"cmd":"a"}],"files":[{"path":"a"},{"path":"/work/a"}]}`, jobs.CodeInvalid, []string{"files[1].path"}},
		{"a source that is too large", `{"language":"python","source":"` + strings.Repeat("x", jobs.MaxInlineBytes+1) + `"}`, jobs.CodeInvalid, []string{"source"}},
		{"too much for one step", `{"image":"base","steps":[{"cmd":"a"},{"cmd":"b","stdin":"` + strings.Repeat("x", jobs.MaxInlineBytes+1) + `"}]}`, jobs.CodeInvalid, []string{"steps[1].stdin"}},
		{
			"all at once", `{"version":"v9","id":"x","image":"Base!","steps":[{"cmd":"a","shell":"b","user":"admin","env":{"A=B":"c"},"cwd":"../x","limits":{"wall_ms":-1,"disk_bytes":5}},{}],
			"files":[{"path":"../x","text":"a"},{"path":"ok","mode":"99","text":"a","base64":"YQ=="},{"path":"o","object":{"name":"n","sha256":"zz"}}],
			"artifacts":[{"path":"[a"}],"priority":12,"infra_retries":-1,"network":{"policy":"lan","allow":["x y"],"ports":[80,0,80]},"labels":{"":"v"},"headroom":{"vcpus":2,"memory_mib":-1},"callbacks":[{"url":"ftp://x"}]}`,
			jobs.CodeInvalid, []string{
				"artifacts[0].path", "callbacks[0].url", "files[0].path", "files[1]", "files[1].mode", "files[2].object.sha256", "headroom.memory_mib", "headroom.vcpus", "id", "image", "infra_retries",
				`labels[""]`, "network.allow", "network.allow[0]", "network.policy", "network.ports[1]", "network.ports[2]", "priority",
				"steps[0]", "steps[0].cwd", "steps[0].env.A=B", "steps[0].limits.disk_bytes", "steps[0].limits.wall_ms", "steps[0].user", "steps[1]", "version",
			},
		},
		{
			"wrong types", `{"image":1,"steps":[{"cmd":[],"args":"x","env":[],"limits":7}],"files":{},"priority":"high","stdin_stream":1,"labels":{"a":1}}`,
			jobs.CodeInvalid, []string{"files", "image", "image", "labels.a", "priority", "stdin_stream", "steps[0]", "steps[0].args", "steps[0].cmd", "steps[0].env", "steps[0].limits"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := jobs.Decode([]byte(tt.body), jobs.Lenient)
			e, ok := errors.AsType[*jobs.Error](err)
			if !ok {
				t.Fatalf("error %v", err)
			}
			var paths []string
			for _, f := range e.Faults {
				paths = append(paths, f.Path)
				if f.Message == "" {
					t.Errorf("no message at %s", f.Path)
				}
			}
			if e.Code != tt.code || !cmp.Equal(paths, tt.paths) {
				t.Errorf("%s\n%s", e, cmp.Diff(tt.paths, paths))
			}
		})
	}
}

func TestUnknownFields(t *testing.T) {
	body := []byte(`{"language":"python","source":"1","prioritty":3,"steps":[],"limits":{"wal_ms":3}}`)
	_, warnings, err := jobs.Decode(body, jobs.Lenient)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(warnings)
	want := []string{"limits.wal_ms: unknown field; did you mean wall_ms?", "prioritty: unknown field; did you mean priority?"}
	if d := cmp.Diff(want, warnings); d != "" {
		t.Error(d)
	}
	if _, _, err := jobs.Decode(body, jobs.Strict); err == nil {
		t.Error("strict took unknown fields")
	}
}

// What is written as a whole pair, or is U+FFFD itself, is text like any other.
func TestDecodeUnicode(t *testing.T) {
	for body, want := range map[string]string{`\ud83d\ude00`: "\U0001F600", `\ufffd`: "\uFFFD", "\uFFFD": "\uFFFD", `\\ud800 \ufffd`: `\ud800 ` + "\uFFFD"} {
		s, _, err := jobs.Decode([]byte(`{"language":"python","source":"`+body+`"}`), jobs.Strict)
		if err != nil || s.Source != want {
			t.Errorf("%s: got %+v, %v", body, s, err)
		}
	}
}

// A file elsewhere, or of a spec with steps, may have the name of a language's source.
func TestSourceFileElsewhere(t *testing.T) {
	for _, body := range []string{
		`{"language":"python","source":"1","files":[{"path":"main.sh"},{"path":"/main.py"},{"path":"a/main.py"}]}`,
		`{"image":"python","steps":[{"cmd":"a"}],"files":[{"path":"main.py"}]}`,
	} {
		if _, _, err := jobs.Decode([]byte(body), jobs.Strict); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// Every spec that Go can write is read back the same.
func TestRoundTrip(t *testing.T) {
	one := 1
	spec := jobs.Spec{
		Version: "v1", ID: jobs.NewID(), IdempotencyKey: "k", Image: "base", StdinStream: true,
		Steps: []jobs.Step{{Name: "a", Cmd: "x", Args: []string{"1"}, Env: map[string]string{"A": "b"}, Cwd: "/work", User: "root", Limits: jobs.Limits{WallMS: 1}}},
		Files: []jobs.File{{Path: "f", Mode: "0755", Base64: []byte{0xff}}}, Artifacts: []jobs.Artifact{{Path: "**/x", MaxBytes: 3, Optional: true}},
		Limits: jobs.Limits{DiskBytes: 1 << 20}, Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 64}, Network: jobs.Network{Policy: "allowlist", Allow: []string{"example.org", "10.0.0.0/8"}},
		Priority: &one, QueueTTLMS: 5, InfraRetries: &one, Labels: map[string]string{"a": "b"}, Callbacks: []jobs.Callback{{URL: "https://example.org/", Events: []string{jobs.HookEnded}}},
		RunAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), DependsOn: []string{jobs.NewID()}, Concurrency: jobs.Concurrency{Key: "repo", Limit: 2}, Pool: "gpu",
		Requires: map[string]string{"arch": "amd64"},
		Retry:    &jobs.Retry{Attempts: 2, Rules: []jobs.RetryRule{{Endings: []jobs.Ending{jobs.TimeLimit}, ExitCodes: []int{75}, Action: jobs.ActionRetry}}},
	}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	back, warnings, err := jobs.Decode(b, jobs.Strict)
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if d := cmp.Diff(spec, *back); d != "" {
		t.Error(d)
	}
	if back.Hash() != spec.Hash() {
		t.Error("another hash after a round trip")
	}
}

func TestIDs(t *testing.T) {
	last := ""
	for range 10_000 {
		id := jobs.NewID()
		if _, err := jobs.ParseID(id); err != nil || id <= last {
			t.Fatalf("%q after %q: %v", id, last, err)
		}
		last = id
	}
	for _, bad := range []string{"", "x", strings.ToUpper(last), last + "0", "00000000-0000-4000-8000-000000000000"} {
		if _, err := jobs.ParseID(bad); err == nil {
			t.Errorf("%q taken", bad)
		}
	}
}

func TestExpand(t *testing.T) {
	s := jobs.Spec{Language: "python", Source: "print(1)", Args: []string{"a"}, Stdin: "in"}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	x := s.Expand()
	want := jobs.Spec{
		Image: "python", Files: []jobs.File{{Path: "main.py", Text: "print(1)"}},
		Steps: []jobs.Step{{Cmd: "python3", Args: []string{"main.py", "a"}, Stdin: "in"}},
	}
	if d := cmp.Diff(want, x); d != "" {
		t.Error(d)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"image":"base","steps":[{"cmd":"true"}]}`))
	f.Add([]byte(`{"a":[[[{"b":1e5}]]],"limits":{"wall_ms":1e400}}`))
	f.Add([]byte(`{"image":"base","steps":[{"cmd":"true"}],"run_at":"0000-01-01T00:00:00+01:00"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		spec, _, err := jobs.Decode(b, jobs.Lenient)
		if err != nil {
			if _, ok := errors.AsType[*jobs.Error](err); !ok {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if err := spec.Validate(); err != nil {
			t.Fatalf("decoded, but invalid: %v", err)
		}
		x := spec.Expand()
		if err := x.Validate(); err != nil {
			t.Fatalf("invalid when expanded: %v", err)
		}
	})
}

// What Paddock itself could not keep or send is refused, though the client wrote less.
func TestEscapedSpecIsTooLarge(t *testing.T) {
	s := jobs.Spec{Language: "python", Source: strings.Repeat("<", 200<<10)}
	if e, ok := errors.AsType[*jobs.Error](s.Validate()); !ok || e.Code != jobs.CodeTooLarge {
		t.Errorf("error %v", s.Validate())
	}
}

// Unknown fields without end do not make an answer without end.
func TestWarningsAreBounded(t *testing.T) {
	var b strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&b, `"x%d":1,`, i)
	}
	_, warnings, err := jobs.Decode([]byte(`{`+b.String()+`"language":"python","source":"1"}`), jobs.Lenient)
	if err != nil || len(warnings) != 51 || warnings[50] != "and 9950 more" {
		t.Errorf("%d warnings, %v", len(warnings), err)
	}
}

// Of what is wrong no more is looked for than anybody reads.
func TestFaultsAreBounded(t *testing.T) {
	var unknown strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&unknown, `"x%d":1,`, i)
	}
	var list jobs.ListRequest
	_, listed := jobs.DecodeRequest([]byte(`{"states":["x"`+strings.Repeat(`,"x"`, 2000)+`]}`), &list)
	_, _, ending := jobs.Decode([]byte(`{"language":"python","source":"1","retry":{"rules":[{"action":"retry","endings":["x"`+strings.Repeat(`,"x"`, 2000)+`]}]}}`), jobs.Lenient)
	_, _, typed := jobs.Decode([]byte(`{"language":"python","source":"1","args":[1`+strings.Repeat(`,1`, 2000)+`]}`), jobs.Lenient)
	_, _, strict := jobs.Decode([]byte(`{`+unknown.String()+`"language":"python","source":"1"}`), jobs.Strict)
	for name, err := range map[string]error{"states": listed, "endings": ending, "types": typed, "unknown fields": strict} {
		e, ok := errors.AsType[*jobs.Error](err)
		if !ok || len(e.Faults) != 51 || !strings.HasSuffix(e.Faults[50].Message, " more, at least") {
			t.Errorf("%s: %.300v", name, err)
		}
	}
}

func TestRequestTooLarge(t *testing.T) {
	var q jobs.ListRequest
	_, err := jobs.DecodeRequest([]byte(`{"states":["queued"`+strings.Repeat(`,"queued"`, 10_000)+`]}`), &q)
	if e, ok := errors.AsType[*jobs.Error](err); !ok || e.Code != jobs.CodeTooLarge {
		t.Errorf("a list request of 90 kB: %v", err)
	}
}
