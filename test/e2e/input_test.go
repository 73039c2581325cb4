package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// Bad input over plain NATS: a typed error that names the field, and the process lives.
func TestBadInput(t *testing.T) {
	c := up(t)
	nc, err := nats.Connect(shared.p.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	big := strings.Repeat("x", 300<<10)
	for _, tt := range []struct {
		name, body string
		code       jobs.Code
		path       string
	}{
		{"empty", ``, jobs.CodeInvalid, ""},
		{"garbage", `{{{`, jobs.CodeInvalid, ""},
		{"not an object", `[1]`, jobs.CodeInvalid, ""},
		{"invalid UTF-8", "{\"language\":\"python\",\"source\":\"\xff\xfe\"}", jobs.CodeInvalid, ""},
		{"nothing to run", `{}`, jobs.CodeInvalid, ""},
		{"wrong type", `{"language":"python","source":7}`, jobs.CodeInvalid, "source"},
		{"wrong language", `{"language":"cobol85","source":"x"}`, jobs.CodeInvalid, "language"},
		{"wrong image", `{"image":"nope","steps":[{"cmd":"true"}]}`, jobs.CodeInvalid, "image"},
		{"path with ..", `{"image":"base","steps":[{"cmd":"true"}],"files":[{"path":"../etc/passwd","text":"x"}]}`, jobs.CodeInvalid, "files[0].path"},
		{"wrong user", `{"image":"base","steps":[{"cmd":"true","user":"admin"}]}`, jobs.CodeInvalid, "steps[0].user"},
		{"negative limit", `{"image":"base","steps":[{"cmd":"true"}],"limits":{"wall_ms":-1}}`, jobs.CodeInvalid, "limits.wall_ms"},
		{"network here", `{"image":"base","steps":[{"cmd":"true"}],"network":{"policy":"internet"}}`, jobs.CodeUnsupported, "network.policy"},
		{"unknown network", `{"image":"base","steps":[{"cmd":"true"}],"network":{"policy":"lan"}}`, jobs.CodeInvalid, "network.policy"},
		{"callbacks", `{"image":"base","steps":[{"cmd":"true"}],"callbacks":[{"url":"http://example.org/x"}]}`, jobs.CodeUnsupported, "callbacks[0].url"},
		{"too much inline", `{"language":"python","source":"` + big + `"}`, jobs.CodeInvalid, "source"},
		{"over a megabyte", `{"language":"python","source":"` + strings.Repeat("x", 1<<20) + `"}`, jobs.CodeTooLarge, ""},
		{"memory beyond the machine", `{"image":"base","steps":[{"cmd":"true"}],"limits":{"memory_bytes":1099511627776}}`, jobs.CodeInvalid, "limits.memory_bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := nc.Request(jobs.SubmitSubject("default"), []byte(tt.body), time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			var r jobs.SubmitReply
			if err := json.Unmarshal(m.Data, &r); err != nil {
				t.Fatalf("reply %q: %v", m.Data, err)
			}
			if r.Error == nil || r.Error.Code != tt.code {
				t.Fatalf("reply %s, want %s", m.Data, tt.code)
			}
			if tt.path == "" {
				return
			}
			for _, f := range r.Error.Faults {
				if strings.HasPrefix(f.Path, tt.path) {
					return
				}
			}
			t.Errorf("no fault at %s in %s", tt.path, m.Data)
		})
	}
	if err := nc.Publish(jobs.SubmitSubject("default"), make([]byte, 10<<20)); err == nil {
		t.Error("a message of 10 MB was taken")
	}
	wantSuccess(t, runJob(t, c, python("print(1)")))
}

// An unknown field is a warning that names the nearest known one, not a silent loss.
func TestUnknownFieldWarns(t *testing.T) {
	up(t)
	nc, err := nats.Connect(shared.p.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	m, err := nc.Request(jobs.SubmitSubject("default"), []byte(`{"language":"python","source":"print(1)","labls":{"a":"b"}}`), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var r jobs.SubmitReply
	if err := json.Unmarshal(m.Data, &r); err != nil {
		t.Fatal(err)
	}
	if r.Job == nil || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "labels") {
		t.Errorf("reply %s", m.Data)
	}
}
