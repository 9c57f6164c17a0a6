package config

import (
	"fmt"
	"io"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Log says what a process logs and how.
type Log struct {
	Level  string `yaml:"level" doc:"Least severe messages to log: debug, info, warn or error. debug logs every request and is for looking into a fault, not for every day."`
	Format string `yaml:"format" doc:"json writes one JSON object a line, for collectors; console writes text for people."`
}

// DefaultLog logs from info on, as JSON.
func DefaultLog() Log { return Log{Level: "info", Format: "json"} }

// Validate checks the level and the format.
func (c Log) Validate() error {
	if _, err := zapcore.ParseLevel(c.Level); err != nil || c.Level == "" {
		return fmt.Errorf("level %q is unknown: use debug, info, warn or error", c.Level)
	}
	if c.Format != "json" && c.Format != "console" {
		return fmt.Errorf("format %q is unknown: use json or console", c.Format)
	}
	return nil
}

// NewLogger returns a logger that writes to w, which need not be safe for
// concurrent use. Nothing is sampled away. Errors of the logger itself go to w
// too.
func NewLogger(c Log, w io.Writer) (*zap.Logger, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	level, err := zapcore.ParseLevel(c.Level)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	keys := zap.NewProductionEncoderConfig()
	keys.TimeKey = "time"
	keys.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	keys.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(keys)
	if c.Format == "console" {
		keys.EncodeLevel = zapcore.CapitalLevelEncoder
		keys.ConsoleSeparator = "  "
		encoder = zapcore.NewConsoleEncoder(keys)
	}
	sink := zapcore.Lock(zapcore.AddSync(w))
	return zap.New(zapcore.NewCore(encoder, sink, level),
		zap.ErrorOutput(sink), zap.AddCaller(), zap.AddStacktrace(zapcore.DPanicLevel)), nil
}
