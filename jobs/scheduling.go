package jobs

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// DefaultPool is the pool of workers, and of jobs, that name none.
const DefaultPool = "default"

// Concurrency bounds how many jobs run at once that have something in common: a repository, a database, a user.
type Concurrency struct {
	// Key names it among the tenant's jobs; at most 200 bytes.
	Key string `json:"key,omitempty"`
	// Limit is how many jobs with the key may run at once, 1 to 10000; 1 where it is left out. A job looks at its own limit.
	Limit int `json:"limit,omitempty"`
}

// Retry says what follows an attempt. Without it, an ending that is Paddock's own failure (class "infra") is tried again as far as
// infra_retries goes, and no other.
type Retry struct {
	// Attempts is how many attempts endings of the class "user" may cost in all, 1 to 10; 1 where it is left out: such an ending is final.
	Attempts int `json:"attempts,omitempty"`
	// Rules are looked at in their order; the first that matches decides. At most 5. Where none matches, only the class "infra" is retried.
	Rules []RetryRule `json:"rules,omitempty"`
}

// RetryRule matches an attempt that ended: all that it gives must match. Endings of the class "policy" are never retried.
type RetryRule struct {
	// Endings are some of those of the classes "user" and "infra"; empty matches each.
	Endings []Ending `json:"endings,omitempty"`
	// ExitCodes are exit codes of the last step that ran, at most 32; empty matches each.
	ExitCodes []int `json:"exit_codes,omitempty"`
	// Action is "retry" or "fail".
	Action string `json:"action"`
}

// Actions of a RetryRule.
const (
	ActionRetry = "retry"
	ActionFail  = "fail"
)

// Retries tells whether the rules want another attempt after a result, budgets aside.
func (r *Retry) Retries(res *Result) bool {
	class := res.Ending.Class()
	if class == ClassPolicy {
		return false
	}
	if r == nil {
		return class == ClassInfra
	}
	for _, rule := range r.Rules {
		if rule.matches(res) {
			return rule.Action == ActionRetry
		}
	}
	return class == ClassInfra
}

func (r *RetryRule) matches(res *Result) bool {
	if len(r.Endings) > 0 && !slices.Contains(r.Endings, res.Ending) {
		return false
	}
	return len(r.ExitCodes) == 0 || res.ExitCode != nil && slices.Contains(r.ExitCodes, *res.ExitCode)
}

// Required gives labels as one string, sorted, "arch=amd64,os=linux": two jobs that require the same give the same.
func Required(labels map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k + "=" + labels[k])
	}
	return b.String()
}

const (
	// MaxDependsOn bounds Spec.DependsOn.
	MaxDependsOn = 64
	// maxAhead bounds RunAt, from now.
	maxAhead = 366 * 24 * time.Hour
	maxRules = 5
)

// scheduling checks when and where the job may run, and how often.
func (s *Spec) scheduling(c *checker) {
	switch {
	case s.RunAt.IsZero():
	case time.Until(s.RunAt) > maxAhead:
		c.fault("run_at", "%s is more than a year ahead", s.RunAt.Format(time.RFC3339))
	case s.RunAt.UTC().Year() < 0: // RFC 3339 can say so with an offset, and nothing can be encoded that has it
		c.fault("run_at", "is before the year 0")
	}
	if len(s.DependsOn) > MaxDependsOn {
		c.fault("depends_on", "has %d, at most %d are taken", len(s.DependsOn), MaxDependsOn)
		return
	}
	for i, id := range s.DependsOn {
		at := fmt.Sprintf("depends_on[%d]", i)
		if _, err := ParseID(id); err != nil {
			c.fault(at, "%.80q is %v", id, err)
		} else if slices.Contains(s.DependsOn[:i], id) || id == s.ID {
			c.fault(at, "%q is there twice, or the job's own", id)
		}
	}
	c.text("concurrency.key", s.Concurrency.Key, 200)
	c.within("concurrency.limit", int64(s.Concurrency.Limit), 10_000)
	if s.Concurrency.Key == "" && s.Concurrency.Limit != 0 {
		c.fault("concurrency.key", "is required with a limit")
	}
	if s.Pool != "" && !tokenRE.MatchString(s.Pool) {
		c.fault("pool", "%.80q must be 1 to 63 letters, digits, _ or -", s.Pool)
	}
	c.workerLabels("requires", s.Requires)
	s.retry(c)
}

// workerLabels checks labels of a worker, or that one must have: no commas and equals signs, they stand between them in Required.
func (c *checker) workerLabels(at string, labels map[string]string) {
	if len(labels) > 16 {
		c.fault(at, "has %d, at most 16 are taken", len(labels))
	}
	for k, v := range labels {
		if !labelRE.MatchString(k) || !labelRE.MatchString(v) {
			c.fault(join(at, k), "key and value must each be 1 to 63 letters, digits, '.', '_', '/' or '-', and begin and end with one of the first two")
		}
	}
}

func (s *Spec) retry(c *checker) {
	r := s.Retry
	if r == nil {
		return
	}
	c.within("retry.attempts", int64(r.Attempts), 10)
	if len(r.Rules) > maxRules {
		c.fault("retry.rules", "has %d, at most %d are taken", len(r.Rules), maxRules)
		return
	}
	for i, rule := range r.Rules {
		at := fmt.Sprintf("retry.rules[%d]", i)
		if rule.Action != ActionRetry && rule.Action != ActionFail {
			c.fault(at+".action", "is %.80q, must be one of %s, %s", rule.Action, ActionRetry, ActionFail)
		}
		for j, e := range rule.Endings {
			if c.full() {
				return
			}
			if class := e.Class(); class != ClassUser && class != ClassInfra {
				c.fault(fmt.Sprintf("%s.endings[%d]", at, j), "is %.80q, must be an ending of the class user or infra", e)
			}
		}
		if len(rule.ExitCodes) > 32 {
			c.fault(at+".exit_codes", "has %d, at most 32 are taken", len(rule.ExitCodes))
		}
	}
}

// ValidLabels checks a worker's labels.
func ValidLabels(labels map[string]string) error {
	c := &checker{}
	if c.workerLabels("labels", labels); len(*c) > 0 {
		return invalid("invalid labels", *c)
	}
	return nil
}
