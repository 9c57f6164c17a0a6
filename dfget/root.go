package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

const exitCodeHelp = `Exit codes:
  0    done
  1    failed for another reason than those below
  2    wrong usage
  3    the origin refuses the credential, or wants one
  4    not found, or not for this platform
  5    the origin cannot be reached, or fails
  6    the bytes are not those that the digest names; nothing was left at PATH
  7    no space left on the device
  8    took too long
  130  interrupted; the same command goes on where it stopped`

// newRoot returns the command dfget with its subcommands.
func newRoot(p *process) *cobra.Command {
	root := &cobra.Command{
		Use:   "dfget",
		Short: "Fetch files and container images peer to peer",
		Long: `dfget fetches files, blobs and container images through the Damselfly daemon of
this machine, which shares them with the other nodes of the cluster. Where no
daemon runs it reads the origin itself. Every digest is verified.

` + exitCodeHelp,
		Example: `  dfget get https://example.com/model.bin -O model.bin
  dfget pull alpine:3 -O alpine.tar && docker load -i alpine.tar
  dfget pull registry.example.com/app:v1 -O app && skopeo copy oci:app:v1 dir:out`,
		Version:       readVersion().String(),
		Args:          knownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err: err, hint: "see: " + cmd.CommandPath() + " --help"}
	})
	root.AddCommand(newGetCommand(p), newPullCommand(p), newCacheCommand(p), newDaemonCommand(), newVersionCommand(p))
	return root
}

// knownCommand is reached with arguments only when they name no command.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	e := &usageError{err: fmt.Errorf("%q is no command of dfget", args[0]), hint: "see: dfget --help"}
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		e.hint = "did you mean: dfget " + similar[0]
	}
	if strings.Contains(args[0], "://") {
		e.hint = "files are fetched by: dfget get URL -O PATH"
	}
	return e
}

// noArgs is a cobra check for commands that take no argument.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%q is not expected here", args[0])
	}
	return nil
}

// oneArg is a cobra check whose error says what is missing.
func oneArg(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return &usageError{err: fmt.Errorf("no %s given", name), hint: "see: " + cmd.CommandPath() + " --help"}
		case len(args) > 1:
			return &usageError{err: fmt.Errorf("one %s at a time, not %d", name, len(args)), hint: "see: " + cmd.CommandPath() + " --help"}
		}
		return nil
	}
}
