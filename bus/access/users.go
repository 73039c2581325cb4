package access

import (
	"fmt"
	"strings"
	"time"
)

// ServerUsers writes credentials as NATS servers have them in their configuration, for those that ask nobody who may connect: a leaf node's.
// They hold no expiry, so one that has expired by now is left out.
func ServerUsers(list []Credential, now time.Time) string {
	var b strings.Builder
	b.WriteString("# Made by paddock credential users; make it anew when the credentials change.\nauthorization {\n  users: [\n")
	for _, c := range list {
		if !c.Expires.IsZero() && !now.Before(c.Expires) {
			continue
		}
		who := "nkey: " + c.NKey
		if c.NKey == "" {
			who = fmt.Sprintf("user: %q, password: %q", c.User, c.Password)
		}
		p := Of(c.Identity)
		fmt.Fprintf(&b, "    { # %s\n      %s\n      permissions {\n        publish { %s }\n        subscribe { %s }\n", c.Identity, who, p.Publish.config(), p.Subscribe.config())
		if p.Answers > 0 {
			fmt.Fprintf(&b, "        allow_responses { max: 1, expires: %q }\n", p.Answers)
		}
		b.WriteString("      }\n    }\n")
	}
	b.WriteString("  ]\n}\n")
	return b.String()
}

func (s Subjects) config() string {
	var parts []string
	for _, p := range []struct {
		word string
		of   []string
	}{{"allow", s.Allow}, {"deny", s.Deny}} {
		var quoted []string
		for _, subject := range p.of {
			quoted = append(quoted, fmt.Sprintf("%q", subject))
		}
		if len(quoted) > 0 {
			parts = append(parts, p.word+": [ "+strings.Join(quoted, ", ")+" ]")
		}
	}
	return strings.Join(parts, ", ")
}
