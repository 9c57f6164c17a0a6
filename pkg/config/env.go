package config

import (
	"fmt"
	"slices"
	"strings"
)

const (
	envPrefix = "DAMSELFLY_"
	// envFile names the configuration file.
	envFile = envPrefix + "CONFIG"
)

// parseEnv picks our variables that are not empty. The last of two with the same
// name counts.
func parseEnv(pairs []string) (map[string]string, error) {
	env := map[string]string{}
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, envPrefix) {
			continue
		}
		if !ok {
			return nil, fmt.Errorf("environment entry %s: want NAME=value", name)
		}
		delete(env, name)
		if value != "" {
			env[name] = value
		}
	}
	return env, nil
}

// applyEnv sets the settings that have a variable in env. A variable that is set
// to nothing counts as not set, as templates leave many such behind.
func applyEnv(root *setting, env map[string]string) (warnings []string, problems []error) {
	var names []string
	for s := range root.leaves {
		if s.env == "" {
			continue
		}
		names = append(names, s.env)
		value, ok := env[s.env]
		if !ok || isServiceLink(s.env, value) {
			delete(env, s.env)
			continue
		}
		delete(env, s.env)
		if err := s.setFlat(value); err != nil {
			problems = append(problems, fmt.Errorf("variable %s (%s): %w", s.env, s.path, err))
			continue
		}
		s.origin = origin{kind: fromEnv, name: s.env}
	}
	for name, value := range env {
		if name == envFile || isServiceLink(name, value) {
			continue
		}
		warning := "variable " + name + " is ignored: no setting has that name"
		if near := nearest(name, names); near != "" {
			warning += "; did you mean " + near + "?"
		}
		warnings = append(warnings, warning)
	}
	slices.Sort(warnings)
	return warnings, problems
}

// setFlat sets a value or a list of values from one text.
func (s *setting) setFlat(text string) error {
	if s.kind == scalars {
		return setList(s.value, splitList(text))
	}
	return setText(s.value, text)
}

// isServiceLink tells whether Kubernetes set the variable: for a Service called
// damselfly-scheduler every container in its namespace finds
// DAMSELFLY_SCHEDULER_PORT=tcp://10.0.0.1:9000, ..._SERVICE_HOST and others.
func isServiceLink(name, value string) bool {
	switch {
	case strings.HasSuffix(name, "_SERVICE_HOST"), strings.HasSuffix(name, "_SERVICE_PORT"),
		strings.Contains(name, "_SERVICE_PORT_"):
		return true
	case strings.HasSuffix(name, "_PORT"), strings.HasSuffix(name, "_TCP"), strings.HasSuffix(name, "_UDP"):
		return strings.HasPrefix(value, "tcp://") || strings.HasPrefix(value, "udp://") || strings.HasPrefix(value, "sctp://")
	}
	for _, part := range []string{"_TCP_", "_UDP_", "_SCTP_"} {
		if strings.Contains(name, "_PORT_") && strings.Contains(name, part) {
			return true
		}
	}
	return false
}
