package main

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// task is one of the HumanEval problems (openai/human-eval, MIT): a Python function to complete, and tests for it.
type task struct {
	ID         string `json:"task_id"`
	Prompt     string `json:"prompt"`
	EntryPoint string `json:"entry_point"`
	Solution   string `json:"canonical_solution"`
	Test       string `json:"test"`
}

// load reads the tasks from a gzipped JSON-lines file.
func load(path string) ([]task, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var tasks []task
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var t task
		if err := json.Unmarshal(lines.Bytes(), &t); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		tasks = append(tasks, t)
	}
	return tasks, lines.Err()
}

// right is a program that passes the task's tests; wrong has a body that does nothing.
func (t task) right() string { return t.program(t.Solution) }
func (t task) wrong() string { return t.program("    return None\n") }

func (t task) program(body string) string {
	return strings.Join([]string{t.Prompt + body, t.Test, "check(" + t.EntryPoint + ")", ""}, "\n")
}
