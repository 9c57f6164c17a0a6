package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// versionInfo is the JSON that "dfget version --output json" prints.
type versionInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readVersion() versionInfo {
	v := versionInfo{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value
		}
	}
	return v
}

// String is one line.
func (v versionInfo) String() string {
	s := v.Version
	if v.Commit != "" {
		s += " (" + v.Commit + ")"
	}
	return s + " " + v.Go + " " + v.Platform
}

func newVersionCommand(p *process) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of dfget",
		Example: "  dfget version\n  dfget version --output json",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			if output == outputJSON {
				return json.NewEncoder(p.Out).Encode(v)
			}
			if output != outputText {
				return usagef("--output %q: want text or json", output)
			}
			_, err := fmt.Fprintln(p.Out, "dfget", v)
			return err
		},
	}
	cmd.Flags().StringVar(&output, "output", outputText, "text or json")
	completeWords(cmd, "output", outputText, outputJSON)
	return cmd
}
