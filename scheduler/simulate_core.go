package main

import (
	"reflect"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// coreSettings are the rules of the core as a scenario file spells them. The fields
// are those of core.Config, name by name; their types are those of settings.
type coreSettings struct {
	Policy            string          `flag:"policy" doc:"How pieces and holders are chosen: rarest, as a live scheduler does, or random or inorder to compare with."`
	UploadSlots       int             `flag:"-" doc:"Leases that may read from a node at a time where it attends without saying."`
	DownloadSlots     int             `flag:"-" doc:"Leases that a node runs at a time where it attends without saying."`
	MaxSlots          int             `flag:"-" doc:"Most slots that a node may claim."`
	ReaderUploadSlots int             `flag:"-" doc:"Most upload slots of a node that reads an origin. 0 is three quarters of what it has, at least 2; up to four, twice what it has at most, for one that is no seed and reads for a crowd."`
	LeasePieces       int             `flag:"-" doc:"Most pieces of one lease from a holder."`
	LeaseBytes        config.Bytes    `flag:"-" doc:"Most bytes of one lease from a holder."`
	LeaseRate         int             `flag:"lease-rate" doc:"Leases that the scheduler gives in a second before it makes them longer. Fewer spare its processor; pieces then spread in larger parts, and later."`
	SwarmLeases       int             `flag:"-" doc:"Leases that a blob makes at least while many want it."`
	Window            int             `flag:"-" doc:"Pieces ahead of its reader that a node fetches once a blob is not rare."`
	RareCopies        int             `flag:"-" doc:"Copies of every piece that make a blob rare no longer."`
	HolderSample      int             `flag:"-" doc:"Holders of a piece that are compared."`
	LeaseTime         config.Duration `flag:"-" doc:"Time that every lease from a holder has at least."`
	MinRate           config.Bytes    `flag:"-" doc:"Bytes per second that a holder must bring while its rate is not known."`
	HedgeTime         config.Duration `flag:"-" doc:"Time after which a slow lease may be given to a second holder too."`
	NearTime          config.Duration `flag:"-" doc:"How long a node waits for a piece in its own rack before it asks farther away."`
	DetachedTime      config.Duration `flag:"-" doc:"How long a lease still runs when its holder has left the scheduler."`
	OriginTime        config.Duration `flag:"-" doc:"Time without a new piece after which another node reads the origin."`
	OriginRate        config.Bytes    `flag:"-" doc:"Bytes per second that an origin must bring."`
	SilenceTime       config.Duration `flag:"-" doc:"How long who reads an origin may say nothing, and a holder send nothing, while others wait."`
	HostLeases        int             `flag:"-" doc:"Reads of one registry at a time."`
	OriginAttempts    int             `flag:"-" doc:"Reads of an origin that may fail in a row until those who need it are refused."`
	OriginRefusals    int             `flag:"-" doc:"Readers that an origin must have turned away until others are refused unasked."`
	OriginBackoff     config.Duration `flag:"-" doc:"Pause after the first read of an origin that failed."`
	OriginBackoffMax  config.Duration `flag:"-" doc:"Longest such pause."`
	MaxPause          config.Duration `flag:"-" doc:"Longest pause that an origin can ask for."`
	BusyTime          config.Duration `flag:"-" doc:"How long a receiver avoids a holder that was at its limit."`
	AvoidTime         config.Duration `flag:"-" doc:"How long a receiver avoids a holder that it could not reach."`
	Reports           int             `flag:"-" doc:"Nodes in a row that could not reach a holder until it counts as gone."`
	GoneTime          config.Duration `flag:"-" doc:"How long it then counts as gone."`
	Strikes           int             `flag:"-" doc:"Nodes that must have got bad pieces from a holder until nobody reads from it."`
	Quarantine        config.Duration `flag:"-" doc:"How long nobody reads from it then."`
	Failures          int             `flag:"-" doc:"Leases of one node and blob that may fail in a row."`
	TellTime          config.Duration `flag:"-" doc:"How long an asked node may take to tell its links."`
	ReturnTime        config.Duration `flag:"-" doc:"How long after the first node came a blob that came half way is not read from its origin."`
	IdleTime          config.Duration `flag:"-" doc:"How long a blob is remembered that nobody wants."`
	SweepTime         config.Duration `flag:"-" doc:"Period in which deadlines are looked at."`
	MaxPieces         int             `flag:"-" doc:"Most pieces of all wanted blobs together."`
	MaxHoldings       config.Bytes    `flag:"-" doc:"Most memory for what one node says it holds."`
}

// liveCore are the rules that a live scheduler has.
func liveCore() coreSettings {
	var c coreSettings
	from := core.DefaultConfig()
	eachRule(&from, &c, func(rule, setting reflect.Value) { setting.Set(rule.Convert(setting.Type())) })
	return c
}

func (c coreSettings) config() core.Config {
	var to core.Config
	eachRule(&to, &c, func(rule, setting reflect.Value) { rule.Set(setting.Convert(rule.Type())) })
	return to
}

// eachRule pairs the fields of a core.Config with the settings of the same name.
func eachRule(to *core.Config, c *coreSettings, do func(rule, setting reflect.Value)) {
	rules, settings := reflect.ValueOf(to).Elem(), reflect.ValueOf(c).Elem()
	for i := range settings.NumField() {
		do(rules.FieldByName(settings.Type().Field(i).Name), settings.Field(i))
	}
}
