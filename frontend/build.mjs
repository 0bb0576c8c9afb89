// Bundles the widgets into pipeline_lib/static, one ES module a widget and one style sheet. hatch_build.py runs it.
import { build } from "esbuild";

await build({
  entryPoints: ["chart", "board", "strip", "panel"].map((name) => `src/${name}.js`).concat("src/dashboard.css"),
  outdir: process.argv[2] ?? "../pipeline_lib/static",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  // lightweight-charts and its licence notice travel together.
  legalComments: "inline",
  logLevel: "warning",
});
