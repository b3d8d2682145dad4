// Makes the component of `millrace/component.js` and what it imports. All of WASI is left out: a plugin asks for nothing.

import { writeFile } from 'node:fs/promises';
import { componentize } from '@bytecodealliance/componentize-js';

const [witPath, output] = process.argv.slice(2);
const { component } = await componentize({
  sourcePath: 'millrace/component.js',
  witPath,
  worldName: 'transform',
  disableFeatures: ['stdio', 'random', 'clocks', 'http', 'fetch-event'],
});
await writeFile(output, component);
