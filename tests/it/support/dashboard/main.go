// Holds a dashboard against Grafana's own schema, by the types that Grafana makes of it: dashboard FILE. Told are keys that the
// schema does not know, values of a wrong type, and what is missing: in the dashboard, in the options of its panels, and in
// their queries. Exit: 0 nothing is wrong, 1 something is.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func main() {
	// Those that our dashboard has: it takes a minute to compile them all.
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
	if err := check(os.Args[1]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func check(file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var read dashboard.Dashboard
	err = read.UnmarshalJSONStrict(raw)
	// (where nothing is wrong, it is a list of nothing)
	var found cog.BuildErrors
	if err != nil && !(errors.As(err, &found) && len(found) == 0) {
		return err
	}
	return read.Validate()
}
