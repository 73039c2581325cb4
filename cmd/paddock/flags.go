package main

// What all commands' flags and arguments have in common: their errors say what would be right.

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/paddockvm/paddock/jobs"
)

// choice is a flag's value that is one of a few words.
type choice struct {
	to *string
	of []string
}

var _ pflag.Value = choice{}

func (c choice) String() string { return *c.to }
func (choice) Type() string     { return "string" }

func (c choice) Set(v string) error {
	if !slices.Contains(c.of, v) {
		return errors.New("want " + oneOf(c.of))
	}
	*c.to = v
	return nil
}

// oneOf lists words as a sentence does.
func oneOf(words []string) string {
	last := len(words) - 1
	if last == 0 {
		return words[0]
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// addChoice adds a flag that takes one of a few words, which the usage lists where it does not say what each is; shells complete them.
func addChoice(c *cobra.Command, name, short, value, usage string, of ...string) *string {
	v := &value
	if !strings.HasPrefix(usage, of[0]) {
		usage += ": " + oneOf(of)
	}
	c.Flags().VarP(choice{v, of}, name, short, usage)
	complete(c, name, of...)
	return v
}

// complete has shells complete a flag's value.
func complete(c *cobra.Command, flag string, values ...string) {
	if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // a flag's name is misspelt here
	}
}

// outputFlag adds -o to a command.
func outputFlag(c *cobra.Command) *string {
	return addChoice(c, "output", "o", "text", "output format", "text", "json", "yaml")
}

// flagError makes a flag's error say what was meant, or where to look.
func flagError(c *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "" {
		var names []string
		c.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := jobs.Nearest(unknown.GetSpecifiedName(), names); near != "" {
			return fmt.Errorf("%w; did you mean --%s?", err, near)
		}
	}
	return fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())
}

// arguments bounds how many arguments a command takes; most < 0 is any number.
func arguments(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return fmt.Errorf("an argument is missing: %s", c.UseLine())
		case most >= 0 && len(args) > most:
			return fmt.Errorf("unexpected argument %q: %s", args[most], c.UseLine())
		}
		return nil
	}
}

// refuseArguments has commands that only hold others say so when they are given a word that is none of them: cobra would print help
// and succeed.
func refuseArguments(c *cobra.Command) {
	for _, sub := range c.Commands() {
		refuseArguments(sub)
	}
	if c.Runnable() || !c.HasSubCommands() {
		return
	}
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		hint := fmt.Sprintf("; see `%s --help`", c.CommandPath())
		c.SuggestionsMinimumDistance = 2
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf("; did you mean `%s %s`?", c.CommandPath(), near[0])
		}
		return fmt.Errorf("%s has no command %q%s", c.CommandPath(), args[0], hint)
	}
}
